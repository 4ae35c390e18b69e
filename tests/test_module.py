import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lcde.data.datamodule import Neighbourhoods
from lcde.errors import InputError
from lcde.models.module import LCDEModule
from lcde.models.tokens import tokens
from lcde.models.weights import NetworkPair, load_checkpoint, require_matching

SIZES = {
    "feature_dim": 16,
    "k": 8,
    "num_layers": 2,
    "nhead": 8,
    "dim_feedforward": None,
    "dropout": 0.1,
    "neighbours_per_end": 3,
    "negative_weight": 2.0,
}


def batch_of(part, pairs) -> Neighbourhoods:
    neighbours = torch.from_numpy(part.indices[pairs]).long()
    features, labels = torch.from_numpy(part.features), torch.from_numpy(part.labels_true)
    same_as_end = (labels[neighbours][:, None] == labels[torch.from_numpy(pairs)][..., None, None]).long()
    return Neighbourhoods(features[neighbours], same_as_end, (labels[pairs[:, 0]] == labels[pairs[:, 1]]).long())


@pytest.fixture
def batch(make_part):
    part = make_part(0, 60, 16, 8)
    return batch_of(part, np.stack([np.arange(60), part.indices[np.arange(60), np.arange(60) % 7 + 1]], axis=1))


def test_losses_are_the_cross_entropies_of_both_networks(batch):
    module = LCDEModule(**SIZES).eval()
    losses = module._losses(batch)
    per_neighbour = [
        F.cross_entropy(module.lcenet(batch.features[row, end][None])[0], batch.same_as_end[row, end, end])
        for row in range(60)
        for end in range(2)
    ]
    per_pair = [
        F.cross_entropy(module.pcenet(batch.features[row].flatten(0, 1)[None])[0], batch.same_identity[row])
        for row in range(60)
    ]
    weight = torch.where(batch.same_identity == 1, 1.0, 2.0)
    assert losses["connectivity_loss"].item() == pytest.approx(torch.stack(per_neighbour).mean().item(), abs=1e-5)
    encoded = module.pcenet.encoder(tokens(batch.features.flatten(1, 2)))
    per_token = []
    for end in range(2):
        hidden = module.token_head.end(encoded[:, end * 8])[:, None] + module.token_head.token(encoded)
        targets = batch.same_as_end[:, end].flatten(1)
        per_token.append(F.cross_entropy(module.token_head.output(hidden).flatten(0, 1), targets.flatten()))
    assert losses["token_loss"].item() == pytest.approx(torch.stack(per_token).mean().item(), abs=1e-5)
    assert losses["edge_loss"].item() == pytest.approx((weight * torch.stack(per_pair)).mean().item(), abs=1e-5)


def test_neighbours_that_are_not_read_do_not_count(batch):
    """Networks and losses are those of a set without them; the tokens of others keep the similarities to them."""
    module, columns = LCDEModule(**SIZES).eval(), torch.tensor([0, 5, 2])
    some = module._losses(batch, columns)
    faces, labels = batch.features.flatten(0, 1), torch.stack([batch.same_as_end[:, end, end] for end in range(2)], 1)
    encoded = module.lcenet.encoder(tokens(faces)[:, columns])
    pairs = torch.cat([encoded[:, :1].expand_as(encoded), encoded], dim=-1)
    expected = F.cross_entropy(module.lcenet.classifier(pairs).flatten(0, 1), labels[..., columns].flatten())
    assert some["connectivity_loss"].item() == pytest.approx(expected.item(), abs=1e-5)

    positions = torch.cat([columns, 8 + columns])
    x = tokens(batch.features.flatten(1, 2))[:, positions]
    encoded = module.pcenet.encoder(x)
    edge = module.pcenet._classify(batch.features.flatten(1, 2), encoded[:, [0, 3]])
    weight = torch.where(batch.same_identity == 1, 1.0, 2.0)
    edge_loss = (weight * F.cross_entropy(edge, batch.same_identity, reduction="none")).mean()
    assert some["edge_loss"].item() == pytest.approx(edge_loss.item(), abs=1e-5)
    targets = batch.same_as_end[..., columns].flatten()
    token_loss = F.cross_entropy(module.token_head(encoded).flatten(0, 2), targets)
    assert some["token_loss"].item() == pytest.approx(token_loss.item(), abs=1e-5)
    every = module._losses(batch)
    in_order = module._losses(batch, torch.arange(8))
    assert all(in_order[name].item() == pytest.approx(every[name].item(), abs=1e-5) for name in every)


def test_a_step_reads_the_end_and_other_neighbours_that_change(batch, monkeypatch):
    module, seen = LCDEModule(**SIZES), []
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    losses = module._losses
    monkeypatch.setattr(
        module, "_losses", lambda batch, columns: seen.append(columns.tolist()) or losses(batch, columns)
    )
    for step in range(50):
        assert module.training_step(batch, step).requires_grad
    assert {len(set(columns)) for columns in seen} == {3}
    assert all(columns[0] == 0 for columns in seen)
    assert {column for columns in seen for column in columns} == set(range(8))
    few = LCDEModule(**SIZES | {"neighbours_per_end": 20})
    monkeypatch.setattr(few, "log_dict", lambda *_, **__: None)
    few.training_step(batch, 0)  # fewer neighbours than that


def test_mixed_precision_holds_for_all_layers(batch):
    module, seen = LCDEModule(**SIZES), []
    for layer in (*module.lcenet.encoder.layers, *module.pcenet.encoder.layers):
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        losses = module._losses(batch)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_both_networks_learn_a_batch(batch):
    torch.manual_seed(0)
    module = LCDEModule(**SIZES)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    for _ in range(60):
        losses = module._losses(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert max(loss.item() for loss in losses.values()) < 0.2


def test_feed_forward_width_defaults_to_four_times_the_features():
    assert LCDEModule(**SIZES).lcenet.encoder.layers[0].linear1.out_features == 64


def test_too_few_neighbours_are_refused():
    with pytest.raises(InputError, match=r"neighbours_per_end=1 must be 2 or more"):
        LCDEModule(**SIZES | {"neighbours_per_end": 1})


def test_heads_are_checked():
    with pytest.raises(InputError, match=r"dataset\.k=8"):
        LCDEModule(**{**SIZES, "k": 9})


def test_missing_and_broken_checkpoints_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.ckpt"):
        load_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"broken\.ckpt"):
        load_checkpoint(tmp_path / "broken.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"other\.ckpt"):
        load_checkpoint(tmp_path / "other.ckpt")


def test_checkpoint_needs_none_of_the_settings_of_training(tmp_path):
    module = LCDEModule(**SIZES)
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": {"nhead": 8, "of_another_version": 1}}
    torch.save(checkpoint, tmp_path / "best.ckpt")
    pair = load_checkpoint(tmp_path / "best.ckpt")
    assert (pair.feature_dim, pair.k) == (16, 8)
    for network, original in ((pair.lcenet, module.lcenet), (pair.pcenet, module.pcenet)):
        assert all(map(torch.equal, network.state_dict().values(), original.state_dict().values()))


def test_checkpoint_of_another_k_is_refused():
    with pytest.raises(InputError, match=r"k=8.*dataset\.k is 16"):
        require_matching(NetworkPair(None, None, 16, 8, "best.ckpt"), 16, 16)
