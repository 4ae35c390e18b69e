import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lcde.data.datasets
from lcde.data.datasets import IJBB, MS1M, Custom, DeepFashion, held_out_faces
from lcde.data.formats import write_knn
from lcde.data.knn import build_knn
from lcde.errors import InputError


@pytest.fixture
def gallery(make_gallery):
    return make_gallery(0, num_faces=60, feature_dim=16, k=8)


def write(root, gallery, layout, name):
    labels = gallery.labels_true * 7 + 3  # neither from 0 nor consecutive
    scaled = gallery.features * np.linspace(0.5, 20, len(gallery), dtype=np.float32)[:, None]  # not normalised
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
def test_graph_is_built_in_the_layouts_own_format_and_serves_a_smaller_k(name, gallery, tmp_path):
    layout, number, part_name, graph = LAYOUTS[name]
    write(tmp_path, gallery, layout, part_name)
    parts = layout(str(tmp_path), 8, 16, None, [number]).load(train=False)
    [built] = parts.evaluation
    assert (parts.train, parts.validation) == (None, None)
    assert (built.name, built.held_out) == (part_name, False)
    assert (tmp_path / graph).is_file()
    np.testing.assert_allclose(built.features, gallery.features, atol=1e-6)
    assert np.array_equal(built.graph.indices, gallery.graph.indices)
    assert np.array_equal(built.labels_true, np.unique(gallery.labels_true, return_inverse=True)[1])
    [read] = layout(str(tmp_path), 5, 16, None, [number]).load(train=False).evaluation
    assert np.array_equal(read.graph.indices, gallery.graph.indices[:, :5])
    np.testing.assert_allclose(read.graph.similarities, gallery.graph.similarities[:, :5], atol=1e-6)


@pytest.mark.parametrize("name", LAYOUTS)
def test_width_is_checked(name, gallery, tmp_path):
    layout, number, part_name, _ = LAYOUTS[name]
    write(tmp_path, gallery, layout, part_name)
    with pytest.raises(InputError, match=r"dataset\.feature_dim=24"):
        layout(str(tmp_path), 8, 24, None, [number]).load(train=False)


@pytest.fixture
def deepfashion(gallery, tmp_path):
    for name in ("deepfashion_train", "deepfashion_test"):
        write(tmp_path, gallery, DeepFashion, name)
    return DeepFashion(str(tmp_path), 8, 16, "deepfashion_train", ["deepfashion_test"], val_share=0.3)


def people(part, gallery):
    """The faces of each identity of ``part``, by their numbers in ``gallery``."""
    faces = (part.features @ gallery.features.T).argmax(axis=1)
    return {frozenset(faces[part.labels_true == identity].tolist()) for identity in set(part.labels_true.tolist())}


def test_training_part_is_split_by_identities(deepfashion, gallery, tmp_path):
    assert deepfashion.has_train()
    parts = deepfashion.load(train=True)
    train, validation = parts.train, parts.validation
    assert (train.name, validation.name) == ("deepfashion_train", "deepfashion_train_held_out")
    assert (train.held_out, validation.held_out) == (False, True)
    assert [part.name for part in parts.evaluation] == ["deepfashion_test"]
    assert len(train) + len(validation) == 60
    assert people(train, gallery) | people(validation, gallery) == people(
        gallery, gallery
    )  # no identity is on both sides
    assert len(people(validation, gallery)) == round(0.3 * len(people(gallery, gallery)))
    for part in (train, validation):
        assert part.labels_true.dtype == np.int64
        assert np.array_equal(np.unique(part.labels_true), np.arange(part.labels_true.max() + 1))
        assert np.array_equal(part.graph.indices, build_knn(part.features, 8).indices)
    folders = {path.parent.name for path in (tmp_path / "knns").glob("*/deepfashion_k8.npz")}
    assert folders >= {"deepfashion_train_fit_0.3", "deepfashion_train_held_out_0.3"}


def test_to_evaluate_held_out_identities_are_the_same_and_the_rest_is_not_read(deepfashion, tmp_path):
    expected = deepfashion.load(train=True)
    parts = deepfashion.load(train=False)
    assert parts.train is None
    assert np.array_equal(parts.validation.features, expected.validation.features)
    assert parts.validation.knn_seconds == 0  # its graph is stored
    (tmp_path / "labels" / "deepfashion_train.meta").unlink()
    assert not deepfashion.has_train()
    assert deepfashion.load(train=False).validation is None
    with pytest.raises(InputError, match=r"deepfashion_train\.meta does not exist"):
        deepfashion.load(train=True)


def test_another_share_has_its_own_graphs(deepfashion):
    expected = len(deepfashion.load(train=True).validation)
    deepfashion.val_share = 0.5
    assert len(deepfashion.load(train=True).validation) > expected


def test_too_few_held_out_faces_for_k_are_named(deepfashion, tmp_path):
    deepfashion.val_share = 0.01
    with pytest.raises(InputError, match=r"dataset\.k=8 .* deepfashion_train_held_out \(held-out identities\)"):
        deepfashion.load(train=True)
    assert not (tmp_path / "knns").exists()


@given(st.lists(st.integers(0, 9), min_size=2), st.floats(0.01, 0.99))
def test_held_out_faces_are_whole_identities(labels, share):
    labels = np.array(labels)
    identities = np.unique(labels)
    if len(identities) < 2:
        with pytest.raises(InputError, match="part has 1 identity; training needs two or more"):
            held_out_faces(labels, share, "part")
        return
    chosen = held_out_faces(labels, share, "part")
    held_out = np.unique(labels[chosen])
    assert not np.isin(labels[~chosen], held_out).any()
    assert 0 < len(held_out) < len(identities)
    assert abs(len(held_out) - share * len(identities)) <= 1
    assert np.array_equal(chosen, held_out_faces(labels, share, "part"))


@pytest.mark.parametrize("share", [0, 1, -0.5, 2, float("nan")])
def test_held_out_share_must_lie_between_0_and_1(share, deepfashion):
    deepfashion.val_share = share
    with pytest.raises(InputError, match=r"dataset\.val_share=.* must lie between 0 and 1"):
        deepfashion.load(train=True)


@pytest.mark.parametrize("what", ["features", "graph", "training features"])
def test_all_parts_are_checked_before_one_is_worked_on(what, gallery, make_gallery, tmp_path):
    for name in ("one", "two"):
        write(tmp_path, gallery, MS1M, name)
    if what == "graph":
        other = make_gallery(1, num_faces=60, feature_dim=16, k=8)
        write_knn(tmp_path / "knns" / "two" / "faiss_k_8.npz", other.graph, "", "data")
    else:
        with open(tmp_path / "features" / "two.bin", "r+b") as file:
            file.write(np.full(16, np.nan, dtype=np.float32).tobytes())
    training = what == "training features"
    dataset = MS1M(str(tmp_path), 8, 16, "two" if training else None, ["one"] if training else ["one", "two"], 0.3)
    with pytest.raises(InputError, match="two"):
        dataset.load(train=training)
    assert not (tmp_path / "knns" / "one").exists()


def test_evaluation_parts_are_read_in_turn(gallery, tmp_path, monkeypatch):
    for name in ("one", "two", "one_more"):
        write(tmp_path, gallery, MS1M, name)
    built = []
    build = lcde.data.datasets.knn_graph
    monkeypatch.setattr(lcde.data.datasets, "knn_graph", lambda *a: built.append(a[3]) or build(*a))
    parts = MS1M(str(tmp_path), 8, 16, None, ["one", "two"]).load(train=False).evaluation
    assert built == []
    first = parts[0]
    assert parts[1].name == "two"
    again = parts[0]
    assert again is not first  # nothing is kept
    assert again.knn_seconds == first.knn_seconds > 0
    assert built == ["one", "two", "one"]
    assert [part.name for part in parts] == ["one", "two"]
    with pytest.raises(IndexError):
        parts[2]


def test_a_graph_in_the_way_is_found_before_another_is_built(gallery, tmp_path):
    for name in ("512", "1024"):
        write(tmp_path, gallery, IJBB, name)
    np.save(tmp_path / "knn.graph.1024.bf.npy", gallery.graph.indices[:, :5])
    with pytest.raises(InputError, match=r"knn\.graph\.1024\.bf\.npy holds 5 neighbours, fewer than k=8; delete it"):
        IJBB(str(tmp_path), 8, 16, None, [512, 1024]).load(train=False)
    assert not (tmp_path / "knn.graph.512.bf.npy").exists()
    assert np.load(tmp_path / "knn.graph.1024.bf.npy").shape == (60, 5)  # left alone


def test_ijbb_has_nothing_to_train_on(tmp_path):
    dataset = IJBB(str(tmp_path), 8, 16, None, [512])
    assert not dataset.has_train()
    with pytest.raises(InputError, match="no training part"):
        dataset.load(train=True)


def test_shuffled_columns_of_an_index_file_are_put_in_order(gallery, tmp_path):
    write(tmp_path, gallery, IJBB, "512")
    np.save(tmp_path / "knn.graph.512.bf.npy", np.random.default_rng(0).permuted(gallery.graph.indices, axis=1))
    [read] = IJBB(str(tmp_path), 8, 16, None, [512]).load(train=False).evaluation
    assert np.array_equal(read.graph.indices, gallery.graph.indices)


def test_index_file_of_other_features_is_refused(gallery, tmp_path, make_gallery):
    write(tmp_path, gallery, IJBB, "512")
    other = make_gallery(1, num_faces=60, feature_dim=16, k=8)
    np.save(tmp_path / "knn.graph.512.bf.npy", other.graph.indices)
    with pytest.raises(InputError, match=r"knn\.graph\.512\.bf\.npy are nearest by the features"):
        IJBB(str(tmp_path), 8, 16, None, [512]).load(train=False)


@pytest.fixture
def faces(gallery, tmp_path):
    """Custom files: the folder, with faces.npy and people.txt."""
    np.save(tmp_path / "faces.npy", gallery.features)
    names = [f"person {label}" for label in gallery.labels_true]
    (tmp_path / "people.txt").write_text("\n".join(names))
    return tmp_path


def custom(feature_dim=16, k=8, val_share=0.25, **files):
    return Custom(k, feature_dim, val_share=val_share, **{key: str(file) for key, file in files.items()})


def test_custom_embeddings_need_no_labels(gallery, faces):
    parts = custom(features=faces / "faces.npy").load(train=False)
    [read] = parts.evaluation
    assert (parts.train, parts.validation, read.name, read.labels_true) == (None, None, "custom", None)
    assert np.array_equal(read.graph.indices, gallery.graph.indices)
    assert (faces / "faces.npy_knns" / "custom" / "faiss_k_8.npz").is_file()


def test_custom_training_faces_are_split_by_identities(gallery, faces):
    dataset = custom(train_features=faces / "faces.npy", train_labels=faces / "people.txt")
    assert dataset.has_train()
    parts = dataset.load(train=True)
    assert len(parts.evaluation) == 0
    assert (parts.train.name, parts.validation.name) == ("train", "train_held_out")
    assert (parts.train.held_out, parts.validation.held_out) == (False, True)
    assert people(parts.train, gallery) | people(parts.validation, gallery) == people(gallery, gallery)
    assert len(people(parts.validation, gallery)) == round(0.25 * len(people(gallery, gallery)))
    folders = {path.parent.name for path in (faces / "faces.npy_knns").glob("*/faiss_k_8.npz")}
    assert folders == {"train_fit_0.25", "train_held_out_0.25"}


def test_custom_validation_files_replace_the_split(gallery, faces):
    files = {"train_features": "faces.npy", "train_labels": "people.txt", "val_features": "faces.npy"}
    files = {name: faces / file for name, file in files.items()}
    parts = custom(**files, val_labels=faces / "people.txt").load(train=True)
    assert (parts.train.name, parts.validation.name) == ("train", "val")
    assert (len(parts.train), len(parts.validation), parts.validation.held_out) == (60, 60, True)


def test_unlabelled_faces_are_evaluated_beside_a_training_part(gallery, faces):
    (faces / "list.txt").write_text("\n".join(f"{face}.jpg" for face in range(60)))
    files = {"train_features": "faces.npy", "train_labels": "people.txt", "features": "faces.npy", "images": "list.txt"}
    files = {name: faces / file for name, file in files.items()}
    parts = custom(**files).load(train=False)
    [read] = parts.evaluation
    assert (read.name, read.labels_true, read.images[3]) == ("custom", None, faces / "3.jpg")
    assert (parts.train, parts.validation.name) == (None, "train_held_out")
    with pytest.raises(InputError, match=r"dataset\.labels is not given"):  # to train, results are wanted
        custom(**files).load(train=True)
    [read] = custom(**files, labels=faces / "people.txt").load(train=True).evaluation
    assert (read.name, read.labels_true.max()) == ("custom", gallery.labels_true.max())
    assert read.images is not None


@pytest.mark.parametrize(
    ("given", "train", "missing"),
    [
        ({}, False, "features"),
        ({}, True, "train_features"),
        *(({key: "faces.npy"}, True, "features") for key in ("labels", "graph", "images", "reference")),
        ({"train_features": "faces.npy"}, False, "train_labels"),
        ({"train_labels": "people.txt"}, False, "train_features"),
        ({"val_features": "faces.npy"}, False, "val_labels"),
        ({"val_labels": "people.txt"}, False, "val_features"),
    ],
)
def test_missing_files_are_named_by_their_key(given, train, missing, faces):
    with pytest.raises(InputError, match=rf"dataset\.{missing} is not given"):
        custom(**{key: faces / file for key, file in given.items()}).load(train=train)


def test_a_reference_is_clustered_together_with_the_faces(gallery, faces):
    np.save(faces / "others.npy", -gallery.features[:7])
    dataset = custom(features=faces / "faces.npy", labels=faces / "people.txt", reference=faces / "others.npy")
    [read] = dataset.load(train=False).evaluation
    assert len(read) == len(gallery) == len(read.labels_true)
    assert len(read.union) == len(gallery) + 7
    assert np.array_equal(read.union.graph.indices, build_knn(read.union.features, 8).indices)
    np.save(faces / "others.npy", gallery.features[:7, 1:])
    with pytest.raises(InputError, match=r"others.npy has shape \(7, 15\)"):
        dataset.load(train=False)


@pytest.mark.parametrize("key", ["labels", "train_labels", "val_features", "graph", "images", "reference"])
def test_files_that_do_not_exist_are_named_by_their_key(key, faces):
    given = dict.fromkeys(("features", "train_features", "train_labels", "val_labels"), faces / "faces.npy")
    with pytest.raises(InputError, match=rf"dataset\.{key} not found: .*nobody\.txt"):
        custom(**given | {"val_features": faces / "faces.npy", key: faces / "nobody.txt"})


def test_custom_graph_is_used_instead_of_a_built_one(gallery, faces):
    random = np.argsort(np.random.default_rng(0).random((60, 60)), axis=1)
    indices = np.stack([[face, *row[row != face][:9]] for face, row in enumerate(random)])
    np.savez(faces / "graph.npz", indices=indices)
    [read] = custom(features=faces / "faces.npy", graph=faces / "graph.npz").load(train=False).evaluation
    assert read.graph.k == 8
    assert all(set(row) <= set(given) for row, given in zip(read.graph.indices, indices, strict=True))
    assert not (faces / "faces.npy_knns").exists()
    with pytest.raises(InputError, match=r"graph\.npz holds 10 neighbours, fewer than k=12"):
        custom(k=12, features=faces / "faces.npy", graph=faces / "graph.npz").load(train=False)
    with pytest.raises(InputError, match=r"dataset\.k=1 must lie between 2 and 59"):
        custom(k=1, features=faces / "faces.npy", graph=faces / "graph.npz").load(train=False)


@pytest.mark.parametrize("layout", ["data", "knns"])
def test_custom_graph_may_be_in_a_published_layout(layout, gallery, faces):
    write_knn(faces / "graph.npz", gallery.graph, "of other features", layout)
    [read] = custom(k=5, features=faces / "faces.npy", graph=faces / "graph.npz").load(train=False).evaluation
    assert np.array_equal(read.graph.indices, gallery.graph.indices[:, :5])


def test_custom_graph_is_checked_before_another_is_built(faces, make_gallery):
    write_knn(faces / "graph.npz", make_gallery(1, num_faces=60, feature_dim=16, k=8).graph, "", "data")
    files = {"train_features": "faces.npy", "train_labels": "people.txt", "features": "faces.npy", "graph": "graph.npz"}
    with pytest.raises(InputError, match=r"graph\.npz has similarities up to .* correct the graph"):
        custom(**{key: faces / file for key, file in files.items()}).load(train=False)
    assert not (faces / "faces.npy_knns").exists()


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


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("graph", [None, "graph.npz"])
def test_of_fewer_faces_than_k_all_are_neighbours(count, graph, gallery, tmp_path):
    np.save(tmp_path / "faces.npy", gallery.features[:count])
    np.savez(tmp_path / "graph.npz", indices=np.tile(np.arange(count), (count, 1)))
    files = {"features": tmp_path / "faces.npy"} | ({"graph": tmp_path / graph} if graph else {})
    [read] = custom(**files).load(train=False).evaluation
    expected = build_knn(gallery.features[:count], count)
    assert np.array_equal(read.graph.indices, expected.indices)
    assert not (tmp_path / "faces.npy_knns").exists()


@pytest.mark.parametrize("prefix", ["", "train_"])
def test_to_train_k_must_be_below_the_faces(prefix, gallery, faces):
    np.save(faces / "few.npy", gallery.features[:8])
    np.save(faces / "names.npy", np.arange(8))
    files = {"train_features": faces / "faces.npy", "train_labels": faces / "people.txt"}
    files |= {f"{prefix}features": faces / "few.npy", f"{prefix}labels": faces / "names.npy"}
    with pytest.raises(InputError, match=r"dataset\.k=8 must lie between"):
        custom(**files).load(train=True)


def test_faces_and_labels_of_different_lengths_are_refused(gallery, faces):
    np.save(faces / "people.npy", gallery.labels_true[1:])
    with pytest.raises(InputError, match=r"people\.npy holds 59 labels, but there are 60 faces"):
        custom(features=faces / "faces.npy", labels=faces / "people.npy").faces()


def test_features_and_labels_may_be_in_one_archive(gallery, tmp_path):
    names = np.array([f"person {label}" for label in gallery.labels_true])
    np.savez(tmp_path / "all.npz", embeddings=gallery.features.astype(np.float64), names=names)
    [read] = custom(features=tmp_path / "all.npz", labels=tmp_path / "all.npz").load(train=False).evaluation
    assert np.array_equal(read.labels_true, np.unique(names, return_inverse=True)[1])


def test_custom_files_of_every_kind_give_the_same_gallery(gallery, tmp_path):
    np.save(tmp_path / "a.npy", gallery.features)
    np.savez(tmp_path / "b.npz", features=gallery.features, names=np.arange(60))
    torch.save(torch.from_numpy(gallery.features), tmp_path / "c.pt")
    gallery.features.tofile(tmp_path / "d.bin")
    for name, feature_dim in (("a.npy", None), ("b.npz", None), ("c.pt", None), ("d.bin", 16)):
        dataset = custom(features=tmp_path / name, feature_dim=feature_dim)
        assert dataset.feature_dim == 16
        assert np.array_equal(dataset.load(train=False).evaluation[0].graph.indices, gallery.graph.indices)


@pytest.mark.parametrize(
    ("name", "words"), [("d.bin", "feature_dim"), ("e.csv", "ending '.csv'"), ("f.pt", "f.pt"), ("g.npz", "g.npz")]
)
def test_files_that_cannot_be_read_are_named(name, words, tmp_path):
    (tmp_path / name).write_bytes(b"1,2,3,4")
    with pytest.raises(InputError, match=words):
        custom(features=tmp_path / name, feature_dim=None).load(train=False)


def test_image_list_has_one_line_a_face(faces):
    (faces / "list.txt").write_text("a.jpg")
    with pytest.raises(InputError, match=r"list\.txt lists 1 images, but there are 60 faces"):
        custom(features=faces / "faces.npy", images=faces / "list.txt").load(train=False)
    assert not (faces / "faces.npy_knns").exists()
