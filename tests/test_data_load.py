"""Loaders: digits, generated data, arrays, files, folders, text."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from fieldfare.core.errors import MissingExtra, UsageError
from fieldfare.data import (
    PRINTABLE,
    Vocabulary,
    digits,
    dirichlet,
    from_csv,
    from_huggingface,
    from_image_folder,
    from_npz,
    from_numpy,
    from_parquet,
    from_table,
    from_text,
    iid,
    images_as,
    joint,
    labels_per_client,
    lognormal_quantity,
    natural,
    read_csv,
    read_parquet,
    synthetic,
)


def owned(fed, name="x"):
    """Values of a column by client name."""
    return {fed.who(i): fed.block([i]).client(0)[name].tolist() for i in range(fed.n_clients)}


# digits and generated data


def test_digits_are_scaled_split_and_shared_out():
    fed = digits(seed=4)
    assert fed.n_clients == 100
    assert fed.columns["x"].shape == (1797, 64)
    assert fed.columns["x"].dtype == np.float32
    assert (fed.columns["x"].min(), fed.columns["x"].max()) == (0.0, 1.0)
    assert fed.classes == 10
    assert len(fed.test["y"]) == 359
    assert len(np.unique(fed.rows)) == len(fed.rows) == 1797 - 359


def test_a_data_set_says_how_it_was_made(table):
    assert digits(10, seed=3).name == "digits, dirichlet(alpha=0.3, clients=10), test fraction 0.2, seed 3"
    assert from_csv(table, "who", "ill", features=["age"], fill=0.0).name == "t.csv"
    assert (
        synthetic(2, seed=9).holdout(0.5).name
        == "synthetic(2 clients, 10 classes, 60 features, alpha=1, beta=1), seed 9"
    )


def test_digits_depend_on_the_seed_and_nothing_else():
    assert np.array_equal(digits(seed=1).rows, digits(seed=1).rows)
    assert not np.array_equal(digits(seed=1).test["y"], digits(seed=2).test["y"])


def test_no_training_example_of_digits_is_in_the_test():
    fed = digits(seed=0)
    train = {row.tobytes() for row in fed.columns["x"][fed.rows]}
    assert not train & {row.tobytes() for row in fed.test["x"]}  # all 1,797 images differ


def test_the_number_of_digit_clients_comes_from_either_side_but_not_both():
    assert digits(20).n_clients == digits(partition=dirichlet(0.3, clients=20)).n_clients == 20
    assert digits(partition=joint(dirichlet(0.3), lognormal_quantity(), clients=7)).n_clients == 7
    with pytest.raises(UsageError, match="clients=20 disagrees"):
        digits(20, partition=dirichlet(0.3, clients=10))


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'fieldfare\[digits\]'"):
        digits()


def test_a_synthetic_client_does_not_depend_on_how_many_there_are():
    few, many = synthetic(3, seed=5), synthetic(9, seed=5)
    assert owned(few)["client 2"] == owned(many)["client 2"]
    assert owned(few, "y")["client 2"] == owned(many, "y")["client 2"]
    assert owned(few)["client 2"] != owned(synthetic(3, seed=6))["client 2"]


def test_synthetic_labels_are_linear_in_the_inputs_of_each_client():
    fed = synthetic(4, classes=3, features=5, seed=1)
    assert fed.columns["x"].shape[1] == 5
    assert fed.classes == 3
    assert set(np.unique(fed.columns["y"])) <= {0, 1, 2}


def test_beta_moves_the_inputs_of_synthetic_clients_apart():
    def spread(beta):
        fed = synthetic(60, beta=beta, seed=0)
        return np.std([np.mean(values) for values in owned(fed).values()])

    assert spread(3.0) > 4 * spread(0.0)


def test_the_iid_synthetic_case_has_one_model_and_one_input_distribution():
    fed = synthetic(20, alpha=0.0, beta=0.0, same_model=True, min_examples=900, seed=0)
    x, y = fed.columns["x"], fed.columns["y"]
    means = np.array([np.mean(v, axis=0) for v in owned(fed).values()])
    assert np.abs(means).max() < 0.2
    solved = np.linalg.lstsq(np.c_[x, np.ones(len(x))], np.eye(10)[y], rcond=None)[0]
    assert np.mean((np.c_[x, np.ones(len(x))] @ solved).argmax(axis=1) == y) > 0.7


def test_synthetic_features_shrink_as_the_paper_says():
    fed = synthetic(30, alpha=0.0, beta=0.0, same_model=True, min_examples=500, seed=0)
    variance = fed.columns["x"].astype(np.float64).var(axis=0)
    assert variance == pytest.approx(np.arange(1, 61) ** -1.2, rel=0.1)


def test_synthetic_sizes_and_test_share_keep_their_limits():
    fed = synthetic(40, min_examples=50, max_examples=100, test_fraction=0.1, seed=0)
    whole = synthetic(40, min_examples=50, max_examples=100, test_fraction=0.0, seed=0)
    assert whole.sizes.min() >= 50
    assert whole.sizes.max() == 100
    assert whole.test is None
    assert len(fed.test["y"]) == np.floor(whole.sizes * 0.1).sum()


@pytest.mark.parametrize("options", [{"clients": 0}, {"alpha": -1}, {"max_examples": 10}, {"test_fraction": 1.0}])
def test_wrong_synthetic_options_are_refused(options):
    with pytest.raises(UsageError):
        synthetic(**options)


# arrays


def test_arrays_are_owned_by_their_ids():
    fed = from_numpy(np.arange(4.0), [0, 1, 2, 0], client=[9, 7, 9, 9])
    assert owned(fed) == {"client 7": [1.0], "client 9": [0.0, 2.0, 3.0]}
    assert fed.classes == 3


def test_a_memory_map_stays_one(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(6, 2))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    fed = from_numpy(x, client=[0, 0, 0, 1, 1, 1], test_fraction=0.3)
    assert isinstance(fed.columns["x"], np.memmap)
    assert fed.block([1]).client(0)["x"].shape == (2, 2)


def test_the_test_rows_of_named_clients_come_from_each_of_them():
    fed = from_numpy(np.arange(100), client=np.repeat([0, 1], 50), test_fraction=0.2, seed=1)
    assert fed.sizes.tolist() == [40, 40]
    assert np.sum(fed.test["x"] < 50) == np.sum(fed.test["x"] >= 50) == 10
    assert sorted([*fed.columns["x"][fed.rows], *fed.test["x"]]) == list(range(100))


def test_a_client_with_one_row_keeps_it():
    fed = from_numpy(np.arange(11), client=[0] * 10 + [1], test_fraction=0.9)
    assert fed.sizes.tolist() == [1, 1]


def test_the_test_rows_of_made_clients_are_taken_first():
    fed = from_numpy(np.arange(100), np.arange(100) % 4, partition=labels_per_client(1, 4), test_fraction=0.2)
    assert fed.sizes.sum() == 80
    assert not set(fed.test["x"]) & set(fed.rows)
    assert all(len(set(v)) == 1 for v in owned(fed, "y").values())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "say who owns the rows once"),
        ({"client": [0, 1], "partition": iid(2)}, "say who owns the rows once"),
        ({"client": [0]}, "1 client ids for 2 rows"),
        ({"client": [0, 1], "clients": 2}, "clients=2 has no meaning"),
        ({"client": ["a", None]}, "the client id of row 1 is missing"),
        ({"client": [0.0, np.nan]}, "the id in row 1"),
        ({"client": [0, 1], "test_fraction": 1.0}, "test_fraction=1.0"),
        ({"client": [0, 0], "test_fraction": 0.5, "test": {"x": [1.0]}}, "give one of them"),
    ],
)
def test_wrong_ownership_is_refused(options, told):
    with pytest.raises(UsageError) as caught:
        from_numpy(np.zeros(2), **options)
    assert told in str(caught.value)


def test_an_npz_file_gives_columns_ids_and_test(tmp_path):
    np.savez(
        tmp_path / "d.npz",
        x=np.full((4, 2), 255, np.uint8),
        y=[0, 1, 1, 0],
        who=["b", "a", "b", "b"],
        tx=np.zeros((1, 2), np.uint8),
        ty=[1],
    )
    fed = from_npz(tmp_path / "d.npz", client="who", test={"x": "tx", "y": "ty"}, scale=1 / 255)
    assert owned(fed)["client a"] == [[1.0, 1.0]]
    assert fed.columns["x"].dtype == fed.test["x"].dtype == np.float32
    assert fed.test["y"].tolist() == [1]
    with pytest.raises(UsageError, match="no array 'writer'; it has"):
        from_npz(tmp_path / "d.npz", client="writer")


def test_a_pickled_array_is_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="without pickles"):
        from_npz(tmp_path / "d.npz", y=None, partition=iid(1))
    np.save(tmp_path / "d.npy", np.zeros(3))
    with pytest.raises(UsageError, match="holds one array"):
        from_npz(tmp_path / "d.npy", partition=iid(1))
    with pytest.raises(UsageError, match="is not a file"):
        from_npz(tmp_path / "none.npz", partition=iid(1))


# tables

CSV = """who,age,ward,score,ill
ann,40,red,0.5,yes
bob,?,blue,1.5,no
ann,60,red,,yes
bob,20,green,2.5,no
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    return path


def test_a_csv_file_is_read_by_column_with_types_and_gaps(table):
    columns = read_csv(table)
    assert {k: v.dtype.kind for k, v in columns.items()} == {
        "who": "U",
        "age": "f",
        "ward": "U",
        "score": "f",
        "ill": "U",
    }
    assert np.isnan(columns["age"][1])
    assert read_csv(table, missing=("",))["age"].tolist() == ["40", "?", "60", "20"]


def test_a_csv_file_becomes_features_labels_and_clients(table):
    fed = from_csv(table, "who", "ill", one_hot=["ward"], fill={"age": "mean", "score": 0.0})
    assert fed.names.tolist() == ["ann", "bob"]
    assert fed.columns["x"].dtype == np.float32
    #                                  age  score  blue green red
    assert owned(fed)["client ann"] == [[40, 0.5, 0, 0, 1], [60, 0, 0, 0, 1]]
    assert owned(fed)["client bob"] == [[40, 1.5, 1, 0, 0], [20, 2.5, 0, 1, 0]]
    assert fed.columns["y"].tolist() == [1, 0, 1, 0]
    assert fed.classes == 2


def test_a_missing_value_is_an_error_unless_told_how_to_fill_it(table):
    with pytest.raises(UsageError, match=r"column 'age' is missing in row 1 \(1 such rows of 4\)"):
        from_csv(table, "who", "ill", features=["age"])
    with pytest.raises(UsageError, match="column 'score' is missing"):
        from_csv(table, "who", "ill", features=["age", "score"], fill={"age": 0.0})
    with pytest.raises(UsageError, match="fill='mode'"):
        from_csv(table, "who", "ill", features=["age"], fill="mode")
    filled = from_csv(table, "who", "ill", features=["age"], fill="median").columns["x"]
    assert filled.tolist() == [[40], [40], [60], [20]]


def test_a_text_column_is_not_silently_left_out(table):
    with pytest.raises(UsageError, match=r"column 'ward' holds <U5, no numbers; add it to one_hot"):
        from_csv(table, "who", "ill", fill=0.0)
    with pytest.raises(UsageError, match="there is no column 'wards'"):
        from_csv(table, "who", "ill", one_hot=["wards"])
    with pytest.raises(UsageError, match="no feature is left"):
        from_table({"who": np.array(["a"])}, "who")


def test_fills_and_scales_are_learnt_from_training_rows_only():
    age = np.array([1.0, 2.0, 3.0, np.nan] * 25)
    age[-1] = 0.0
    base = {"who": np.arange(100) % 2, "age": age, "y": np.arange(100) % 2}
    fed = from_table(base, "who", "y", fill="mean", standardise=True, test_fraction=0.3, seed=3)
    train = fed.columns["x"][fed.rows].astype(np.float64)
    assert train.mean() == pytest.approx(0, abs=1e-6)
    assert train.std() == pytest.approx(1, abs=1e-6)
    spoiled = dict(base, age=np.where(np.isin(np.arange(100), fed.rows), age, 1e6))
    again = from_table(spoiled, "who", "y", fill="mean", standardise=True, test_fraction=0.3, seed=3)
    assert np.array_equal(fed.columns["x"][fed.rows], again.columns["x"][again.rows])


def test_a_constant_feature_is_standardised_to_zero():
    fed = from_table({"a": np.full(4, 7.0), "y": np.zeros(4, int)}, label="y", partition=iid(2), standardise=True)
    assert not fed.columns["x"].any()


def test_labels_of_a_table_are_text_whole_numbers_or_targets():
    base = {"a": np.arange(4.0)}

    def y(column):
        return from_table(base | {"y": np.array(column)}, label="y", partition=iid(2)).columns["y"]

    assert y(["no", "yes", "no", "yes"]).tolist() == [0, 1, 0, 1]
    assert y([1.0, 0.0, 2.0, 2.0]).dtype == np.int64
    assert y([0.5, 0.0, 2.0, 2.0]).dtype == np.float32
    with pytest.raises(UsageError, match="label 'y' is missing in row 1"):
        y([0.0, np.nan, 1.0, 1.0])


def test_a_table_can_be_shared_out_by_any_of_its_columns():
    base = {"a": np.arange(60.0), "ward": np.repeat(["a", "b", "c"], 20), "y": np.arange(60) % 2}
    fed = from_table(base, label="y", features=["a"], partition=natural("ward"))
    assert fed.sizes.tolist() == [20, 20, 20]
    assert from_table(base, label="y", features=["a"], partition=dirichlet(0.5), clients=5).n_clients == 5
    assert from_table({"a": np.arange(6.0)}, partition=iid(3)).sizes.tolist() == [2, 2, 2]


def test_a_broken_csv_file_is_refused_by_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3\n")
    with pytest.raises(UsageError, match="line 3: 1 fields, the header has 2"):
        read_csv(path)
    path.write_text("a,a\n1,2\n")
    with pytest.raises(UsageError, match="header of different names"):
        read_csv(path)
    path.write_text("")
    with pytest.raises(UsageError, match="at least one line"):
        read_csv(path)
    with pytest.raises(UsageError, match="is not a file"):
        read_csv(tmp_path / "none.csv")


def test_a_missing_client_id_in_a_table_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("who,a\nx,1\n,2\n")
    with pytest.raises(UsageError, match="client id 'who' is missing in row 1"):
        from_csv(path, "who")


def test_a_parquet_file_gives_the_same_data_as_csv(table, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    columns = {
        "who": ["ann", "bob", "ann", "bob"],
        "age": [40, None, 60, 20],
        "ward": pa.array(["red", "blue", "red", "green"]).dictionary_encode(),
        "score": [0.5, 1.5, None, 2.5],
        "ill": ["yes", "no", "yes", "no"],
        "note": [b"x"] * 4,
    }
    pq.write_table(pa.table(columns), path)
    options = {"features": ["age", "score"], "one_hot": ["ward"], "fill": "mean"}
    mine, other = from_parquet(path, "who", "ill", **options), from_csv(table, "who", "ill", **options)
    assert owned(mine) == owned(other)
    assert owned(mine, "y") == owned(other, "y")
    with pytest.raises(UsageError, match="column 'note' is binary"):
        from_parquet(path, "who", "ill")
    with pytest.raises(UsageError, match="no column 'aged'"):
        from_parquet(path, "who", "ill", features=["aged"])
    with pytest.raises(UsageError, match="does not exist"):
        from_parquet(tmp_path / "none.parquet", "who")
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        from_parquet(table, "who")


def test_lists_of_equal_length_in_parquet_are_features(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"who": [1, 2], "v": [[1.0, 2.0], [3.0, 4.0]], "b": [True, False], "n": pa.nulls(2)}), path)
    assert owned(from_parquet(path, "who", features=["v", "b"])) == {"client 1": [[1, 2, 1]], "client 2": [[3, 4, 0]]}
    assert np.isnan(read_parquet(path, ["n"])["n"]).all()
    with pytest.raises(UsageError, match="column 'n' has no value in any training row"):
        from_parquet(path, "who", features=["n"], fill="mean")
    pq.write_table(pa.table({"v": [[1.0], [3.0, 4.0]]}), path)
    with pytest.raises(UsageError, match="lists of different lengths"):
        read_parquet(path)


def test_parquet_without_pyarrow_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"fieldfare\[parquet\]"):
        read_parquet("t.parquet")


@pytest.mark.slow
def test_a_hugging_face_data_set_becomes_clients():
    hf = pytest.importorskip("datasets")
    data = hf.Dataset.from_dict(
        {
            "pixels": np.arange(16, dtype=np.uint8).reshape(4, 2, 2).tolist(),
            "label": [0, 1, 0, 1],
            "user": ["b", "a", "b", "b"],
            "f": [1.0, 2.0, 3.0, 4.0],
            "g": [5, 6, 7, 8],
        },
        features=hf.Features(
            {
                "pixels": hf.Array2D((2, 2), "uint8"),
                "label": hf.ClassLabel(names=["no", "yes", "perhaps"]),
                "user": hf.Value("string"),
                "f": hf.Value("float64"),
                "g": hf.Value("int64"),
            }
        ),
    )
    fed = from_huggingface(data, "user", x="pixels", scale=1 / 15)
    assert fed.names.tolist() == ["a", "b"]
    assert fed.classes == 3
    assert fed.columns["x"].dtype == np.float32
    assert fed.columns["x"][3].tolist() == pytest.approx(np.array([[12, 13], [14, 15]]) / 15)
    flat = from_huggingface(data, x=["f", "g"], partition=iid(2), test=data.select([0]))
    assert flat.columns["x"].tolist() == [[1, 5], [2, 6], [3, 7], [4, 8]]
    assert flat.test["x"].tolist() == [[1, 5]]
    with pytest.raises(UsageError, match="no column 'image'"):
        from_huggingface(data, "user")
    with pytest.raises(UsageError, match=r"needs one split .* got DatasetDict"):
        from_huggingface(hf.DatasetDict({"train": data}), "user")
    with pytest.raises(UsageError, match="got str"):
        from_huggingface("mnist", "user")


@pytest.mark.slow
def test_images_of_a_hugging_face_data_set_are_decoded():
    hf, image = pytest.importorskip("datasets"), pytest.importorskip("PIL.Image")
    pictures = [image.fromarray(np.full((3, 4, 3), v, np.uint8)) for v in (0, 255)]
    data = hf.Dataset.from_dict(
        {"image": pictures, "label": ["cat", "dog"]},
        features=hf.Features({"image": hf.Image(), "label": hf.Value("string")}),
    )
    fed = from_huggingface(data, partition=iid(2), scale=1 / 255)
    assert fed.columns["x"].shape == (2, 3, 4, 3)
    assert fed.columns["x"][1].min() == pytest.approx(1.0)
    assert fed.columns["y"].tolist() == [0, 1]


# images


@pytest.fixture
def album(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for client, label, value in [("bob", "cat", 51), ("ann", "dog", 255), ("ann", "cat", 0)]:
        folder = tmp_path / client / label
        folder.mkdir(parents=True)
        image.fromarray(np.full((2, 3, 3), value, np.uint8)).save(folder / "1.png")
        (folder / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_of_images_by_client_and_label(album):
    fed = from_image_folder(album)
    assert fed.names.tolist() == ["ann", "bob"]
    assert fed.columns["x"].shape == (3, 3, 2, 3)
    assert owned(fed, "y") == {"client ann": [0, 1], "client bob": [0]}
    assert np.unique(fed.block([1]).client(0)["x"]).tolist() == pytest.approx([0.2])


def test_the_folders_may_stand_for_something_else(album):
    assert from_image_folder(album, "label/client").names.tolist() == ["cat", "dog"]
    assert from_image_folder(album / "ann", "label", partition=iid(2)).columns["y"].tolist() == [0, 1]
    assert "y" not in from_image_folder(album / "ann", "client").columns
    assert from_image_folder(album, mode="L", shape="flat", size=(4, 4)).columns["x"].shape == (3, 16)


def test_wrong_image_folders_are_refused(album):
    image = pytest.importorskip("PIL.Image")
    with pytest.raises(UsageError, match="by='person/label' is unknown"):
        from_image_folder(album, "person/label")
    with pytest.raises(UsageError, match="holds no image at depth"):
        from_image_folder(album / "ann")
    with pytest.raises(UsageError, match="is not a folder"):
        from_image_folder(album / "none")
    image.fromarray(np.zeros((5, 5), np.uint8)).save(album / "bob" / "cat" / "2.png")
    with pytest.raises(UsageError, match=r"2\.png is 5 x 5, the first image 2 x 3; pass size="):
        from_image_folder(album)
    (album / "bob" / "cat" / "2.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"2\.png cannot be read as an image"):
        from_image_folder(album)


def test_images_can_be_laid_out_three_ways():
    pixels = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    hwc, chw, flat = (images_as(pixels, shape) for shape in ("hwc", "chw", "flat"))
    assert np.array_equal(hwc.transpose(0, 3, 1, 2), chw)
    assert np.array_equal(hwc.reshape(2, -1), flat)
    assert all(a.flags.c_contiguous for a in (hwc, chw, flat))
    with pytest.raises(UsageError, match="flat, chw or hwc"):
        images_as(pixels, "cwh")
    with pytest.raises(UsageError, match="needs uint8"):
        images_as(pixels.astype(float))


# text


def test_windows_of_text_predict_the_next_character():
    fed = from_text({"ann": "abcdefgh", "bob": "abc"}, length=3, vocabulary=Vocabulary("abcdefgh"))
    assert fed.names.tolist() == ["ann"]
    assert fed.columns["x"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert fed.columns["y"].tolist() == [[2, 3, 4], [5, 6, 7]]
    assert fed.classes == 9


def test_windows_may_overlap_and_the_last_are_the_test():
    fed = from_text({"ann": "abcdefgh"}, length=3, stride=1, test_fraction=0.4, vocabulary=Vocabulary("abcdefgh"))
    assert fed.sizes.tolist() == [3]
    assert fed.test["x"].tolist() == [[4, 5, 6], [5, 6, 7]]


def test_a_vocabulary_returns_what_it_encoded_and_marks_the_rest():
    assert PRINTABLE.size == 97
    assert PRINTABLE.decode(PRINTABLE.encode("To be, or not\n")) == "To be, or not\n"
    assert PRINTABLE.encode("aé\U0001f426b").tolist() == [PRINTABLE.encode("a")[0], 0, 0, PRINTABLE.encode("b")[0]]
    assert Vocabulary.of(["ba", "cab"]).characters == "abc"
    assert Vocabulary("").encode("x").tolist() == [0]


def test_texts_too_short_for_a_window_are_refused():
    with pytest.raises(UsageError, match="no client of 1 has 81 characters"):
        from_text({"ann": "short"})
    with pytest.raises(UsageError, match="length and stride"):
        from_text({"ann": "short"}, length=0)
