import re

import pytest
import torch
from torch.nn import functional as F

from lcde.errors import InputError
from lcde.models.lcde import LCDEModel
from lcde.models.precision import as_dtype
from lcde.models.tokens import tokens

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
pytestmark = pytest.mark.usefixtures("small_classifier")


def test_losses_are_the_cross_entropies_of_both_networks(batch):
    model = LCDEModel(**SIZES).eval()
    losses = model.losses(batch, training=False)
    per_neighbour = [
        F.cross_entropy(model.lcenet(batch.features[row, end][None])[0], batch.same_as_end[row, end, end])
        for row in range(60)
        for end in range(2)
    ]
    per_pair = [
        F.cross_entropy(model.pcenet(batch.features[row].flatten(0, 1)[None])[0], batch.same_identity[row])
        for row in range(60)
    ]
    weight = torch.where(batch.same_identity == 1, 1.0, 2.0)
    assert losses["connectivity_loss"].item() == pytest.approx(torch.stack(per_neighbour).mean().item(), abs=1e-5)
    encoded = model.pcenet.encoder(tokens(batch.features.flatten(1, 2)))
    per_token = []
    for end in range(2):
        hidden = model.token_head.end(encoded[:, end * 8])[:, None] + model.token_head.token(encoded)
        targets = batch.same_as_end[:, end].flatten(1)
        per_token.append(F.cross_entropy(model.token_head.output(hidden).flatten(0, 1), targets.flatten()))
    assert losses["token_loss"].item() == pytest.approx(torch.stack(per_token).mean().item(), abs=1e-5)
    assert losses["edge_loss"].item() == pytest.approx((weight * torch.stack(per_pair)).mean().item(), abs=1e-5)


def test_neighbours_that_are_not_read_do_not_count(batch):
    """Networks and losses are those of a set without them; the tokens of others keep the similarities to them."""
    model, columns = LCDEModel(**SIZES).eval(), torch.tensor([0, 5, 2])
    some = model._losses(batch, columns)
    faces, labels = batch.features.flatten(0, 1), torch.stack([batch.same_as_end[:, end, end] for end in range(2)], 1)
    encoded = model.lcenet.encoder(tokens(faces)[:, columns])
    pairs = torch.cat([encoded[:, :1].expand_as(encoded), encoded], dim=-1)
    expected = F.cross_entropy(model.lcenet.classifier(pairs).flatten(0, 1), labels[..., columns].flatten())
    assert some["connectivity_loss"].item() == pytest.approx(expected.item(), abs=1e-5)

    positions = torch.cat([columns, 8 + columns])
    encoded = model.pcenet.encoder(tokens(batch.features.flatten(1, 2))[:, positions])
    edge = model.pcenet._classify(batch.features.flatten(1, 2), encoded[:, [0, 3]])
    weight = torch.where(batch.same_identity == 1, 1.0, 2.0)
    edge_loss = (weight * F.cross_entropy(edge, batch.same_identity, reduction="none")).mean()
    assert some["edge_loss"].item() == pytest.approx(edge_loss.item(), abs=1e-5)
    targets = batch.same_as_end[..., columns].flatten()
    token_loss = F.cross_entropy(model.token_head(encoded).flatten(0, 2), targets)
    assert some["token_loss"].item() == pytest.approx(token_loss.item(), abs=1e-5)
    every = model._losses(batch)
    in_order = model._losses(batch, torch.arange(8))
    assert all(in_order[name].item() == pytest.approx(every[name].item(), abs=1e-5) for name in every)


def test_a_step_reads_the_end_and_other_neighbours_that_change(batch, monkeypatch):
    model, seen = LCDEModel(**SIZES), []
    model.pieces = 1  # known, so that no step is tried first
    monkeypatch.setattr(model, "log_dict", lambda *_, **__: None)
    losses = model._losses
    monkeypatch.setattr(
        model, "_losses", lambda batch, columns: seen.append(columns.tolist()) or losses(batch, columns)
    )
    for step in range(50):
        assert model.training_step(batch, step).requires_grad
    assert {len(set(columns)) for columns in seen} == {3}
    assert all(columns[0] == 0 for columns in seen)
    assert {column for columns in seen for column in columns} == set(range(8))
    model.training_step(batch, 7)
    assert seen[-1] == seen[7]  # as on another process, or when the step is repeated
    few = LCDEModel(**SIZES | {"neighbours_per_end": 20})
    monkeypatch.setattr(few, "log_dict", lambda *_, **__: None)
    few.training_step(batch, 0)  # fewer neighbours than that


def test_mixed_precision_holds_for_all_layers(batch):
    model, seen = LCDEModel(**SIZES), []
    for layer in (*model.lcenet.encoder.layers, *model.pcenet.encoder.layers):
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(batch, training=True)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_inference_in_another_precision_leaves_the_model_as_it_is(batch):
    model, faces = LCDEModel(**SIZES).eval(), batch.features.flatten(1, 2)
    networks = model.networks(torch.bfloat16)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    numbers = torch.arange(16).expand(60, -1)
    lower = networks.connectivity(faces[:, :8].bfloat16()), networks.edge_probability(faces.bfloat16(), numbers)
    exact = model.lcenet.connectivity(faces[:, :8]), model.pcenet.edge_probability(faces, numbers)
    for actual, expected in zip(lower, exact, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=0, atol=0.02)
    for network in (as_dtype(model.lcenet, torch.bfloat16), as_dtype(model.pcenet, torch.bfloat16)):
        last = [parameter.dtype for parameter in network.classifier[-1].parameters()]
        assert last == [torch.float32] * 2
        assert [parameter.dtype for parameter in network.parameters()].count(torch.float32) == 2


def test_both_networks_learn_a_batch(batch):
    torch.manual_seed(0)
    model = LCDEModel(**SIZES | {"num_layers": 1, "nhead": 2})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        losses = model._losses(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert max(loss.item() for loss in losses.values()) < 0.2


def test_feed_forward_width_defaults_to_four_times_the_features():
    model = LCDEModel(**SIZES)
    assert model.lcenet.encoder.layers[0].linear1.out_features == 64
    assert model.layer_settings() == {"num_layers": 2, "nhead": 8, "dim_feedforward": 64}


def test_networks_may_differ_in_depth_and_width():
    model = LCDEModel(**SIZES | {"num_layers": [1, 2], "dim_feedforward": [24, 40]})
    sizes = [
        (len(net.encoder.layers), net.encoder.layers[0].linear1.out_features) for net in (model.lcenet, model.pcenet)
    ]
    assert sizes == [(1, 24), (2, 40)]
    assert model.layer_settings() == {"num_layers": [1, 2], "nhead": 8, "dim_feedforward": [24, 40]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("neighbours_per_end", 1),
        ("dropout", 1.5),
        ("negative_weight", -3),
        *((name, value) for name in ("num_layers", "dim_feedforward") for value in (0, [1, 0], [1], [1, 1, 7])),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=rf"model\.{name}={re.escape(str(value))} must "):
        LCDEModel(**SIZES | {name: value})


def test_heads_are_checked():
    with pytest.raises(InputError, match=r"must divide dataset\.feature_dim=16 and dataset\.k=9; .*dataset\.k=8"):
        LCDEModel(**SIZES | {"k": 9})
