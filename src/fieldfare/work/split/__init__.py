"""A model cut in two: a device computes the first layers, an edge server the rest.

`net` cuts a module and trains it whole, `works` computes the two sides, `planning` chooses a cut. Nothing here imports
torch before a net is made.
"""

from fieldfare.work.split.cuts import Cut as Cut
from fieldfare.work.split.net import SplitNet as SplitNet
from fieldfare.work.split.net import legal_cuts as legal_cuts
from fieldfare.work.split.net import split_net as split_net
from fieldfare.work.split.planning import BatchTime as BatchTime
from fieldfare.work.split.planning import Rates as Rates
from fieldfare.work.split.planning import batch_time as batch_time
from fieldfare.work.split.planning import plan as plan
from fieldfare.work.split.planning import replan as replan
from fieldfare.work.split.planning import whole_time as whole_time
from fieldfare.work.split.ranges import Split as Split
from fieldfare.work.split.ranges import split as split
from fieldfare.work.split.works import split_works as split_works
