import numpy as np
import pytest
import torch

from lcde.data.datasets import IJBB, MS1M, Custom, DeepFashion
from lcde.data.formats import normalise, write_knn
from lcde.errors import InputError


@pytest.fixture
def part(make_part):
    return make_part(0, num_faces=60, feature_dim=16, k=8)


def write(root, part, layout, name):
    labels = part.labels_true * 7 + 3  # neither from 0 nor consecutive
    scaled = part.features * np.linspace(0.5, 20, len(part), dtype=np.float32)[:, None]  # not normalised
    if layout is IJBB:
        np.save(root / f"{name}.fea.npy", scaled.astype(np.float64))
        np.save(root / f"{name}.labels.npy", labels)
        return
    for kind in ("features", "labels"):
        (root / kind).mkdir(exist_ok=True)
    scaled.tofile(root / "features" / f"{name}.bin")
    np.savetxt(root / "labels" / f"{name}.meta", labels, fmt="%d")


LAYOUTS = {
    "ms1m": (MS1M, 3, "part3_test", "knns/part3_test/faiss_k_8.npz"),
    "deepfashion": (DeepFashion, "deepfashion_test", "deepfashion_test", "knns/deepfashion_test/deepfashion_k8.npz"),
    "ijbb": (IJBB, 512, "512", "knn.graph.512.bf.npy"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_graph_is_built_in_the_layouts_own_format_and_serves_a_smaller_k(name, part, tmp_path):
    layout, number, part_name, graph = LAYOUTS[name]
    write(tmp_path, part, layout, part_name)
    _, [built] = layout(str(tmp_path), 8, 16, None, [number]).load(train=False)
    assert built.name == part_name
    assert (tmp_path / graph).is_file()
    np.testing.assert_allclose(built.features, part.features, atol=1e-6)
    assert np.array_equal(built.indices, part.indices)
    assert np.array_equal(built.labels_true, np.unique(part.labels_true, return_inverse=True)[1])
    _, [read] = layout(str(tmp_path), 5, 16, None, [number]).load(train=False)
    assert np.array_equal(read.indices, part.indices[:, :5])
    np.testing.assert_allclose(read.similarities, part.similarities[:, :5], atol=1e-6)


@pytest.mark.parametrize("name", LAYOUTS)
def test_width_is_checked(name, part, tmp_path):
    layout, number, part_name, _ = LAYOUTS[name]
    write(tmp_path, part, layout, part_name)
    with pytest.raises(InputError, match=r"dataset\.feature_dim=24"):
        layout(str(tmp_path), 8, 24, None, [number]).load(train=False)


def test_training_part_is_read_beside_the_others(part, tmp_path):
    for name in ("deepfashion_train", "deepfashion_test"):
        write(tmp_path, part, DeepFashion, name)
    dataset = DeepFashion(str(tmp_path), 8, 16, "deepfashion_train", ["deepfashion_test"])
    assert dataset.has_train()
    train, evaluation = dataset.load(train=True)
    assert train.name == "deepfashion_train"
    assert [part.name for part in evaluation] == ["deepfashion_test"]


@pytest.mark.parametrize("what", ["features", "graph"])
def test_all_parts_are_checked_before_one_is_worked_on(what, part, make_part, tmp_path):
    for name in ("one", "two"):
        write(tmp_path, part, MS1M, name)
    if what == "features":
        with open(tmp_path / "features" / "two.bin", "r+b") as file:
            file.write(np.full(16, np.nan, dtype=np.float32).tobytes())
    else:
        other = make_part(1, num_faces=60, feature_dim=16, k=8)
        write_knn(tmp_path / "knns" / "two" / "faiss_k_8.npz", other.indices, other.similarities, "", "data")
    with pytest.raises(InputError, match="two"):
        MS1M(str(tmp_path), 8, 16, None, ["one", "two"]).load(train=False)
    assert not (tmp_path / "knns" / "one").exists()


def test_a_graph_in_the_way_is_found_before_another_is_built(part, tmp_path):
    for name in ("512", "1024"):
        write(tmp_path, part, IJBB, name)
    np.save(tmp_path / "knn.graph.1024.bf.npy", part.indices[:, :5])
    with pytest.raises(InputError, match=r"knn\.graph\.1024\.bf\.npy holds 5 neighbours"):
        IJBB(str(tmp_path), 8, 16, None, [512, 1024]).load(train=False)
    assert not (tmp_path / "knn.graph.512.bf.npy").exists()


def test_ijbb_has_nothing_to_train_on(tmp_path):
    dataset = IJBB(str(tmp_path), 8, 16, None, [512])
    assert not dataset.has_train()
    with pytest.raises(InputError, match="no training part"):
        dataset.load(train=True)


def test_shuffled_columns_of_an_index_file_are_put_in_order(part, tmp_path):
    write(tmp_path, part, IJBB, "512")
    np.save(tmp_path / "knn.graph.512.bf.npy", np.random.default_rng(0).permuted(part.indices, axis=1))
    _, [read] = IJBB(str(tmp_path), 8, 16, None, [512]).load(train=False)
    assert np.array_equal(read.indices, part.indices)


def test_index_file_of_other_features_is_refused(part, tmp_path, make_part):
    write(tmp_path, part, IJBB, "512")
    np.save(tmp_path / "knn.graph.512.bf.npy", make_part(1, num_faces=60, feature_dim=16, k=8).indices)
    with pytest.raises(InputError, match=r"knn\.graph\.512\.bf\.npy are nearest neighbours"):
        IJBB(str(tmp_path), 8, 16, None, [512]).load(train=False)


def test_index_file_of_a_smaller_k_is_left_alone(part, tmp_path):
    write(tmp_path, part, IJBB, "512")
    np.save(tmp_path / "knn.graph.512.bf.npy", part.indices[:, :4])
    with pytest.raises(InputError, match=r"holds 4 neighbours, fewer than dataset\.k=8"):
        IJBB(str(tmp_path), 8, 16, None, [512]).load(train=False)
    assert np.load(tmp_path / "knn.graph.512.bf.npy").shape == (60, 4)


def custom(**files):
    names = ("features", "labels", "train_features", "train_labels", "val_features", "val_labels")
    paths = {name: str(files[name]) if name in files else None for name in names}
    return Custom(8, files.get("feature_dim", 16), **paths, val_share=0.25, images=files.get("images"))


def test_custom_embeddings_need_no_labels(part, tmp_path):
    np.save(tmp_path / "faces.npy", part.features)
    _, [read] = custom(features=tmp_path / "faces.npy").load(train=False)
    assert read.labels_true is None
    assert np.array_equal(read.indices, part.indices)
    assert (tmp_path / "faces_knns" / "custom" / "faiss_k_8.npz").is_file()


def test_custom_embeddings_train(part, tmp_path):
    np.save(tmp_path / "faces.npy", part.features)
    np.savetxt(tmp_path / "people.txt", part.labels_true, fmt="%d")
    files = {"train_features": "faces.npy", "train_labels": "people.txt", "val_features": "faces.npy"}
    files = {name: tmp_path / file for name, file in files.items()}
    with pytest.raises(InputError, match=r"dataset\.val_labels is not given"):
        custom(**files).load(train=True)
    train, [val] = custom(**files, val_labels=tmp_path / "people.txt").load(train=True)
    assert (train.name, val.name) == ("train", "val")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 4, 5)), r"shape \(3, 4, 5\)"),
        (np.array(["a", "b"]), "shape"),
        (np.ones(5), r"shape \(5,\)"),
        (np.empty((0, 16)), "shape"),
        (np.empty((4, 0)), "shape"),
        (np.ones((4, 16), dtype=complex), "complex"),
        (np.eye(5, 16)[[0, 1, 2, 3, 3]] - np.eye(5, 16)[[3, 3, 3, 3, 3]], "2 of 5 rows .* first row 3"),
        (np.full((4, 16), 1e300), "infinity"),
        (np.full((60, 16), np.nan), "row 0"),
    ],
)
def test_unusable_embeddings_are_named(array, words, tmp_path):
    np.save(tmp_path / "faces.npy", array)
    with pytest.raises(InputError, match=rf"faces\.npy.*{words}"):
        custom(features=tmp_path / "faces.npy").load(train=False)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.uint8])
def test_numbers_of_every_kind_become_unit_float32(dtype, tmp_path):
    np.save(tmp_path / "faces.npy", (7 * np.eye(10, 16) + 1).astype(dtype))
    features, labels = custom(features=tmp_path / "faces.npy").faces()
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    assert labels is None


@pytest.mark.parametrize("count", [1, 2, 8])
def test_of_fewer_faces_than_k_all_are_neighbours(count, part, tmp_path):
    np.save(tmp_path / "faces.npy", part.features[:count])
    _, [read] = custom(features=tmp_path / "faces.npy").load(train=False)
    assert read.indices.shape == (count, count)
    assert np.array_equal(np.sort(read.indices), np.tile(np.arange(count), (count, 1)))
    assert not (tmp_path / "faces_knns").exists()


def test_to_train_k_must_be_below_the_faces(part, tmp_path):
    np.save(tmp_path / "faces.npy", part.features[:8])
    np.save(tmp_path / "people.npy", np.arange(8))
    files = {"train_features": tmp_path / "faces.npy", "train_labels": tmp_path / "people.npy"}
    with pytest.raises(InputError, match=r"dataset\.k=8 must lie between"):
        custom(**files).load(train=True)


def test_faces_and_labels_of_different_lengths_are_refused(part, tmp_path):
    np.save(tmp_path / "faces.npy", part.features)
    np.save(tmp_path / "people.npy", part.labels_true[1:])
    with pytest.raises(InputError, match=r"faces\.npy holds 60 faces, but .*people\.npy 59 labels"):
        custom(features=tmp_path / "faces.npy", labels=tmp_path / "people.npy").faces()


def test_a_file_that_tells_its_width_is_read_once(part, tmp_path):
    np.savez(tmp_path / "faces.npz", part.features)
    dataset = custom(features=tmp_path / "faces.npz", feature_dim=None)
    (tmp_path / "faces.npz").write_bytes(b"read already")
    assert np.array_equal(dataset.faces()[0], normalise(part.features.copy(), "a test"))
    with pytest.raises(InputError, match="cannot be read"):  # nothing is kept twice
        dataset.faces()


def test_custom_files_of_every_kind_give_the_same_part(part, tmp_path):
    np.save(tmp_path / "a.npy", part.features)
    np.savez(tmp_path / "b.npz", features=part.features, names=np.arange(60))
    torch.save(torch.from_numpy(part.features), tmp_path / "c.pt")
    part.features.tofile(tmp_path / "d.bin")
    for name, feature_dim in (("a.npy", None), ("b.npz", None), ("c.pt", None), ("d.bin", 16)):
        dataset = custom(features=tmp_path / name, feature_dim=feature_dim)
        assert dataset.feature_dim == 16
        assert np.array_equal(dataset.load(train=False)[1][0].indices, part.indices)


@pytest.mark.parametrize(
    ("name", "words"), [("d.bin", "feature_dim"), ("e.csv", "ending '.csv'"), ("f.pt", "f.pt"), ("g.npz", "g.npz")]
)
def test_files_that_cannot_be_read_are_named(name, words, tmp_path):
    (tmp_path / name).write_bytes(b"1,2,3,4")
    with pytest.raises(InputError, match=words):
        custom(features=tmp_path / name, feature_dim=None).load(train=False)


def test_without_validation_files_identities_are_split_not_faces(part, tmp_path):
    np.save(tmp_path / "faces.npy", part.features)
    np.save(tmp_path / "people.npy", part.labels_true)
    files = {"train_features": tmp_path / "faces.npy", "train_labels": tmp_path / "people.npy"}
    train, [val] = custom(**files).load(train=True)
    assert len(train) + len(val) == 60
    assert len(np.unique(train.labels_true)) + len(np.unique(val.labels_true)) == len(np.unique(part.labels_true))
    assert 0 < len(np.unique(val.labels_true)) <= 0.4 * len(np.unique(part.labels_true))


def test_image_list_has_one_line_a_face(part, tmp_path):
    np.save(tmp_path / "faces.npy", part.features)
    (tmp_path / "list.txt").write_text("\n".join(f"{face}.jpg" for face in range(60)))
    _, [read] = custom(features=tmp_path / "faces.npy", images=tmp_path / "list.txt").load(train=False)
    assert read.images[3] == tmp_path / "3.jpg"
    (tmp_path / "list.txt").write_text("a.jpg")
    with pytest.raises(InputError, match=r"list\.txt lists 1 images, but there are 60 faces"):
        custom(features=tmp_path / "faces.npy", images=tmp_path / "list.txt").load(train=False)
