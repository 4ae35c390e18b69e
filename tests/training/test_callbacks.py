import pytest
import torch

from lcde.training.callbacks import HeldOutCheckpoint


@pytest.mark.parametrize(
    ("scores", "kept"),
    [([0.5, 0.9, 0.895], [0, 1, 2]), ([0.5, 0.9, 0.88, 0.891], [0, 1, 3]), ([0.9, 0.895, 0.885], [0, 1])],
)
def test_the_latest_epoch_close_to_the_best_one_is_kept(scores, kept):
    """Close to the best of all, not to the one that is kept; in a resumed run too."""
    checkpoint = HeldOutCheckpoint(tolerance=0.01, monitor="val/f_score")
    found = []
    for epoch, score in enumerate(scores):
        state, checkpoint = checkpoint.state_dict(), HeldOutCheckpoint(tolerance=0.01, monitor="val/f_score")
        checkpoint.load_state_dict(state)
        if checkpoint.check_monitor_top_k(None, torch.tensor(score, dtype=torch.float64)):
            found.append(epoch)
    assert found == kept
    assert not checkpoint.check_monitor_top_k(None, None)
