"""Reading and dealing of labelled images: formats, what is wrong with a file, who gets what."""

import gzip
import struct
from pathlib import Path

import numpy as np
import own_data
import pytest

SIDE = 5


def some_images(number=12, classes=3):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, SIDE, SIDE), dtype=np.uint8)
    images[0, 0, 0] = 255
    return images, (np.arange(number) % classes).astype(np.uint8)


def idx(values):
    """By hand, as the format is described: magic, big-endian sizes, bytes."""
    return struct.pack(f">I{values.ndim}I", 0x0800 + values.ndim, *values.shape) + values.tobytes()


def write_folder(folder, *, suffix="", prefix="", parts=("train", "t10k"), number=12):
    images, labels = some_images(number)
    for part in parts:
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(values)
            path = folder / f"{prefix}{part}-{kind}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
    return images, labels


def load(path):
    return own_data.load(Path(path), np.random.default_rng(0))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_idx_files(tmp_path, suffix):
    images, labels = write_folder(tmp_path, suffix=suffix)
    x_train, y_train, x_test, y_test, scale = load(tmp_path)
    for found in (x_train, x_test):
        np.testing.assert_array_equal(found, images.reshape(12, -1))
    for found in (y_train, y_test):
        np.testing.assert_array_equal(found, labels)
    assert x_train.dtype == np.uint8
    assert y_train.dtype == np.int32
    assert scale == 1 / 255


def test_what_the_example_writes_is_what_it_reads(tmp_path):
    images, labels = some_images()
    own_data.write_idx(tmp_path / "a", images)
    own_data.write_idx(tmp_path / "b", labels)
    assert gzip.decompress((tmp_path / "a").read_bytes()) == idx(images)
    np.testing.assert_array_equal(own_data.read_idx(tmp_path / "b"), labels)


def test_one_of_several_sets_by_its_prefix(tmp_path):
    for name in ("emnist-letters", "emnist-digits"):
        write_folder(tmp_path, suffix=".gz", prefix=f"{name}-", parts=("train", "test"))
    with pytest.raises(own_data.DataError, match=r"several sets .*emnist-digits-te"):
        load(tmp_path)
    x_train, _, x_test, _, _ = load(tmp_path / "emnist-letters")
    assert len(x_train) == len(x_test) == 12


def test_without_a_test_part_a_sixth_is_set_apart(tmp_path):
    images, _ = write_folder(tmp_path, parts=("train",))
    x_train, y_train, x_test, y_test, _ = load(tmp_path)
    assert (len(x_train), len(y_train), len(x_test), len(y_test)) == (10, 10, 2, 2)
    rows = np.concatenate([x_train, x_test])
    np.testing.assert_array_equal(
        np.unique(rows, axis=0), np.unique(images.reshape(12, -1), axis=0)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_an_npz(tmp_path, dtype):
    images, labels = some_images()
    path = tmp_path / "data.npz"
    np.savez(path, x_train=images.astype(dtype), y_train=labels, x_test=images, y_test=labels)
    x_train, y_train, x_test, _, scale = load(path)
    np.testing.assert_array_equal(x_train, images.reshape(12, -1))
    np.testing.assert_array_equal(y_train, labels)
    assert x_train.dtype == x_test.dtype or dtype == np.uint8
    assert float(x_train.max()) * scale == pytest.approx(1)


def damaged(content):
    return {
        "is cut off": content[:-1],
        "is cut off in its header": content[:6],
        "is too long": content + b"\0",
        "is no IDX file": b"P5 28 28" + content,
    }


@pytest.mark.parametrize("reason", damaged(b""))
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_damaged_idx_file(tmp_path, reason, suffix):
    images, _ = write_folder(tmp_path, suffix=suffix)
    content = damaged(idx(images))[reason]
    name = f"train-images-idx3-ubyte{suffix}"
    (tmp_path / name).write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(own_data.DataError, match=f"{name} {reason}") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 5, 30, -9, -1])
def test_a_compressed_file_cut_anywhere(tmp_path, length):
    write_folder(tmp_path, suffix=".gz")
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(own_data.DataError, match="train-labels"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x_train": None}, "has no x_train; it has y_train, x_test, y_test"),
        ({"y_train": np.zeros(11, np.uint8)}, "12 images and 11 labels to train"),
        ({"y_train": np.zeros(12)}, r"y_train is float64\[12\], not classes"),
        ({"y_train": np.full(12, -1)}, "y_train has the class -1"),
        ({"x_train": np.zeros(12)}, r"x_train is float64\[12\], not images"),
        ({"x_train": np.array(["a"] * 12)}, "x_train is str32"),
        ({"x_train": np.array([None] * 12)}, "cannot be read: Object arrays"),
        ({"x_train": np.full((12, 4), np.nan)}, "x_train has values that are not finite"),
        ({"x_test": np.zeros((12, 7, 7))}, r"\[5, 5\] to train and of \[7, 7\] to test"),
    ],
)
def test_an_npz_with_something_wrong(tmp_path, change, reason):
    images, labels = some_images()
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels} | change
    path = tmp_path / "data.npz"
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(own_data.DataError, match=reason) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 10, 200, -30])
def test_an_npz_cut_anywhere(tmp_path, length):
    images, labels = some_images()
    path = tmp_path / "data.npz"
    np.savez(path, x_train=images, y_train=labels)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(own_data.DataError, match="cannot be read") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_paths_that_hold_no_data(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for path, reason in (
        (tmp_path / "none" / "such", "does not exist"),
        (tmp_path / "notes.txt", "neither an .npz nor a folder"),
        (tmp_path, "has no .train.images-idx3"),
        (tmp_path / "absent.npz", "cannot be read"),
    ):
        with pytest.raises(own_data.DataError, match=reason):
            load(path)


LABELS = np.random.default_rng(1).integers(0, 10, 4000)


def test_dirichlet_shares_are_uneven_as_far_as_alpha_says():
    spread = {}
    for alpha in (0.1, 1e4):
        owner = own_data.deal_dirichlet(LABELS, 20, alpha, np.random.default_rng(0))
        assert owner.shape == LABELS.shape
        assert owner.min() >= 0
        assert owner.max() < 20
        table = np.zeros((20, 10))
        np.add.at(table, (owner, LABELS), 1)
        spread[alpha] = table.std(axis=0).mean()
    # A uniform deal of 400 images to 20 clients has a deviation of sqrt(20 * 19 / 20) = 4.4.
    assert spread[1e4] < 6
    assert spread[0.1] > 30


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_by_class_every_client_has_a_few_classes_and_the_same_number(classes):
    owner = own_data.deal_by_class(LABELS, 20, classes, np.random.default_rng(0))
    counts = np.bincount(owner, minlength=20)
    assert counts.max() - counts.min() <= classes
    # A piece may lie across the border of two classes.
    assert max(len(np.unique(LABELS[owner == client])) for client in range(20)) <= 2 * classes


def test_every_image_is_at_one_client_and_some_clients_have_none():
    images, labels = some_images()
    owner = own_data.deal_dirichlet(labels, 30, 0.5, np.random.default_rng(0))
    data = own_data.to_clients(images.reshape(12, -1), labels, owner, 30)
    counts = np.asarray(data.counts)
    assert counts.shape == (30,)
    assert counts.min() == 0
    assert counts.sum() == 12
    found = np.concatenate([np.asarray(data.examples[0][i, :k]) for i, k in enumerate(counts)])
    np.testing.assert_array_equal(
        np.unique(found, axis=0), np.unique(images.reshape(12, -1), axis=0)
    )
