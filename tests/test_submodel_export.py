"""A level taken home: stand-alone, at any size, with statistics of its own, measured at every size."""

from __future__ import annotations

import numpy as np
import pytest

import fieldfare as ff
from fieldfare.core.errors import UsageError
from fieldfare.core.params import Params
from fieldfare.store.models import read_model, write_model
from fieldfare.work.submodel import TopNorm, export, submodels

RATES = (1, 0.5, 0.25, 0.125)
RNG = np.random.default_rng(0)


def mlp():
    return submodels(ff.mlp(16, 16, 16, 5), RATES)


def columns(kind, rows=40):
    shape = (rows, 16) if kind == "mlp" else (rows, 1, 8, 8)
    return {"x": RNG.standard_normal(shape, dtype=np.float32), "y": RNG.integers(0, 5, rows)}


def vgg(norm="batch_alone"):
    pytest.importorskip("torch")
    from fieldfare import models

    net = models.vgg5((1, 8, 8), 5, norm, widths=(8, 16, 16, 24))
    return submodels(net, RATES, example=columns("vgg"))


def test_an_exported_level_reads_back_from_its_file_and_measures_the_same(tmp_path):
    for family, kind in ((mlp(), "mlp"), (vgg("group"), "vgg")):
        model, test = family.init(1), columns(kind)
        for rate in RATES:
            one = export(family, model, rate)
            write_model(tmp_path / "level.safetensors", one.params)
            back = read_model(tmp_path / "level.safetensors")
            assert back.layout == one.params.layout == one.net.layout
            assert back.vector.tobytes() == one.params.vector.tobytes()
            name = "1" if rate == 1 else f"1/{round(1 / rate)}"
            assert one.evaluate(test) == family.evaluate_levels(model, test)[name]


def test_the_whole_level_is_the_model_and_smaller_ones_are_its_first_channels():
    family = mlp()
    model = family.init(1)
    assert export(family, model, 1).params.vector.tobytes() == model.vector.tobytes()
    half = export(family, model, 0.5).params
    assert np.array_equal(half.tensor("2.weight"), model.tensor("2.weight")[:8, :8])
    top = export(family, model, 0.5, TopNorm()).params
    assert top.layout == half.layout
    assert not np.array_equal(top.vector, half.vector)


def test_a_pass_for_statistics_gives_a_level_norms_of_its_own_and_changes_no_parameter():
    family = vgg()
    model, data = family.init(1), columns("vgg", 512)
    found = {}
    for rate in (1, 0.5):
        plain, one = export(family, model, rate), export(family, model, rate, data=data)
        assert one.params.vector.tobytes() == plain.params.vector.tobytes()
        assert set(one.params.sides) == {f"norm{i}.running_{what}" for i in (1, 2, 3) for what in ("mean", "var")}
        found[rate] = one.params.sides["norm2.running_mean"]
        single = {name: column[:1] for name, column in data.items()}
        alone = [one.evaluate({n: c[i : i + 1] for n, c in data.items()})["loss"] for i in range(20)]
        together = one.evaluate({n: c[:20] for n, c in data.items()})["loss"]
        assert np.mean(alone) == pytest.approx(together, rel=1e-4)
        assert one.evaluate(single)["loss"] != plain.evaluate(single)["loss"]
        assert one.evaluate(data)["loss"] == pytest.approx(plain.evaluate(data)["loss"], rel=0.02)
    assert len(found[1]) == 2 * len(found[0.5])
    assert not np.allclose(found[1][:8], found[0.5])


def test_statistics_are_of_whole_batches_and_without_dropout():
    family, data = vgg(), columns("vgg", 300)
    torch = pytest.importorskip("torch")
    first = {name: column[:256] for name, column in data.items()}
    model = family.init(1)
    whole, short = (export(family, model, 0.5, data=one).params.sides for one in (first, data))
    for name, side in whole.items():
        assert np.array_equal(short[name], side), "the 44 rows behind the first batch are left out"
    nn = torch.nn
    net = nn.Sequential(
        nn.Linear(16, 8), nn.Dropout(0.5), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 5)
    )
    rows = columns("mlp", 64)
    family = submodels(net, (1, 0.5), example=rows)
    one = export(family, family.init(0), 1, data=rows)
    taken = one.params.tensors()
    before = rows["x"] @ taken["0.weight"].T + taken["0.bias"]
    np.testing.assert_allclose(one.params.sides["2.running_mean"], before.mean(0), atol=1e-5)
    np.testing.assert_allclose(one.params.sides["2.running_var"], before.var(0, ddof=1), rtol=1e-4)


def test_a_module_taken_home_computes_alone():
    family = vgg()
    torch = pytest.importorskip("torch")
    one = export(family, family.init(1), 0.25, data=columns("vgg"))
    module = one.module()
    assert not module.training
    x = torch.randn(3, 1, 8, 8)
    assert torch.allclose(module(x)[:1], module(x[:1]), atol=1e-6)
    assert module.conv1.out_channels == 2


def test_onnx_is_the_same_function_or_says_what_it_needs():
    family = vgg()
    one = export(family, family.init(1), 0.5, data=columns("vgg"))
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        with pytest.raises(UsageError, match="ONNX needs the package"):
            one.onnx()
    else:
        found = onnx.load_from_string(one.onnx())
        onnx.checker.check_model(found)
        from onnx.reference import ReferenceEvaluator

        torch, x = pytest.importorskip("torch"), columns("vgg", 7)["x"]
        (out,) = ReferenceEvaluator(found).run(None, {found.graph.input[0].name: x})
        np.testing.assert_allclose(out, one.module()(torch.from_numpy(x)).detach(), rtol=1e-4, atol=1e-5)
        dims = found.graph.input[0].type.tensor_type.shape.dim
        assert [d.dim_value for d in dims[1:]] == [1, 8, 8]
        assert dims[0].dim_param


def test_declared_layers_are_no_module_and_are_told_so_whether_or_not_onnx_is_there():
    one = export(mlp(), mlp().init(0), 0.5)
    for take in (one.module, one.onnx):
        with pytest.raises(UsageError, match="no torch module"):
            take()


def test_statistics_where_there_are_none_are_refused_in_one_line():
    with pytest.raises(UsageError, match="declared layers have none"):
        export(mlp(), mlp().init(0), 0.5, data=columns("mlp"))
    family = vgg("group")
    with pytest.raises(UsageError, match="has no batch norm"):
        export(family, family.init(0), 0.5, data=columns("vgg"))


def test_a_family_of_another_rule_is_cut_and_measured_by_that_rule():
    family = submodels(ff.mlp(4, 8, 3), (1.0, 0.5), rule=TopNorm())
    model = family.init(0)
    vector = model.vector.copy()
    where = next(where for name, where, _ in model.layout.items() if name == "0.weight")
    vector[where] = np.repeat(np.arange(8, dtype=np.float32), 4)
    model = Params(vector, model.layout)
    kept = family.cut(model, 0.5).tensor("0.weight")
    assert sorted(kept[:, 0].tolist()) == [4.0, 5.0, 6.0, 7.0]
    columns = {"x": np.eye(4, dtype=np.float32), "y": np.zeros(4, np.int64)}
    found = family.central(columns)(model)
    assert found["loss@1/2"] == pytest.approx(family.evaluate_levels(model, columns)["1/2"]["loss"])
    assert found["loss@1/2"] != submodels(ff.mlp(4, 8, 3), (1.0, 0.5)).central(columns)(model)["loss@1/2"]
    assert family.view().rule == TopNorm()
