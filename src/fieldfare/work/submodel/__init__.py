"""Sub-models of any net: which channels belong together, which of them a level keeps, what it costs, how it is run.

`axes` finds the channel groups of a net, `submodels` makes the view of them that a `Run` carries, nets give the
smaller net of a level's layout by `of(layout)`, `declared` says what a level takes, `plan` which one a device gets,
`dry_run` proves it, `export` takes one home.
"""

from fieldfare.work.submodel.axes import Axes as Axes
from fieldfare.work.submodel.axes import Group as Group
from fieldfare.work.submodel.axes import axes as axes
from fieldfare.work.submodel.cost import Declared as Declared
from fieldfare.work.submodel.cost import declared as declared
from fieldfare.work.submodel.cost import measured as measured
from fieldfare.work.submodel.dry import Dry as Dry
from fieldfare.work.submodel.dry import dry_run as dry_run
from fieldfare.work.submodel.dry import proved as proved
from fieldfare.work.submodel.export import Exported as Exported
from fieldfare.work.submodel.export import export as export
from fieldfare.work.submodel.family import Family as Family
from fieldfare.work.submodel.family import submodels as submodels
from fieldfare.work.submodel.fit import Budget as Budget
from fieldfare.work.submodel.fit import Planned as Planned
from fieldfare.work.submodel.fit import needs as needs
from fieldfare.work.submodel.fit import plan as plan
from fieldfare.work.submodel.fit import replan as replan
from fieldfare.work.submodel.fit import replanned as replanned
from fieldfare.work.submodel.fitting import Fitting as Fitting
from fieldfare.work.submodel.rules import Level as Level
from fieldfare.work.submodel.rules import MultiRate as MultiRate
from fieldfare.work.submodel.rules import Prefix as Prefix
from fieldfare.work.submodel.rules import RandomWindow as RandomWindow
from fieldfare.work.submodel.rules import Rolling as Rolling
from fieldfare.work.submodel.rules import SubModels as SubModels
from fieldfare.work.submodel.rules import TopNorm as TopNorm
