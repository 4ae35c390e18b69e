import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel

from lcde.training.callbacks import HeldOutCheckpoint, TrainingTime


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


def test_a_resumed_training_adds_to_the_time_of_its_first_attempt(tmp_path):
    def trained(epochs, checkpoint):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        clock = TrainingTime()
        settings = {"accelerator": "cpu", "limit_train_batches": 1, "limit_val_batches": 0, **quiet}
        trainer = Trainer(max_epochs=epochs, callbacks=[clock], enable_checkpointing=False, **settings)
        trainer.fit(BoringModel(), ckpt_path=checkpoint)
        return trainer, clock.seconds

    trainer, seconds = trained(1, None)
    assert 0 < seconds < 60
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["callbacks"]["TrainingTime"]["seconds"] >= seconds
    state["callbacks"]["TrainingTime"]["seconds"] = 1000.0
    torch.save(state, tmp_path / "last.ckpt")
    assert 1000 < trained(2, tmp_path / "last.ckpt")[1] < 1060
