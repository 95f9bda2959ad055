"""Cascade R-CNN."""

import torch

from lightning_modules.heads.cascade import DELTAS, AgnosticPredictor, CascadeRoIHeads
from lightning_modules.heads.two_stage import TwoStage


def heads() -> CascadeRoIHeads:
    torch.manual_seed(0)
    found = TwoStage("cascade_rcnn", 2, [4, 8, 16, 32, 64], 4, (8, 16, 32, 64, 128), 8, 8, 8).roi_heads
    assert isinstance(found, CascadeRoIHeads)
    return found


def test_one_box_for_all_classes() -> None:
    scores, deltas = AgnosticPredictor(8, 3)(torch.randn(5, 8))
    assert (scores.shape, deltas.shape) == ((5, 3), (5, 12))
    assert torch.equal(deltas[:, :4], deltas[:, 8:])


def test_boxes_of_the_next_stage() -> None:
    """They are those of the stage before, cut at the image, and without gradients."""
    cascade = heads()
    boxes, wanted = torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([[4.0, 4, 60, 30]])
    deltas = cascade.coders[1].encode([wanted], [boxes])[0].requires_grad_()
    refined = cascade.refined(deltas.repeat(1, 3), [boxes], [(32, 48)], cascade.coders[1])[0]
    torch.testing.assert_close(refined, torch.tensor([[4.0, 4, 48, 30]]))
    assert not refined.requires_grad


def test_scores_are_a_mean() -> None:
    """Over the stages; boxes are those of the third one, with its factors."""
    cascade = heads().eval()
    for stage, predictor in enumerate(cascade.box_predictor):
        for parameter in predictor.parameters():
            torch.nn.init.zeros_(parameter)
        predictor.cls_score.bias.data = torch.tensor([0.0, 2.0 * stage, 0.0])
        predictor.bbox_pred.bias.data = torch.tensor([3.0 * (stage == 2), 0.0, 0.0, 0.0])
    maps = {str(level): torch.randn(1, 4, 16 // 2**level, 16 // 2**level) for level in range(4)}
    found, losses = cascade(maps, [torch.tensor([[8.0, 8.0, 28.0, 28.0]])], [(64, 64)])
    shares = [torch.tensor([0.0, 2.0 * stage, 0.0]).softmax(0)[1] for stage in range(3)]
    assert losses == {}
    assert int(found[0]["labels"][0]) == 1
    torch.testing.assert_close(found[0]["scores"][0], torch.stack(shares).mean())
    moved = 20 * 3 / DELTAS[2][0]
    torch.testing.assert_close(found[0]["boxes"][0], torch.tensor([8 + moved, 8, 28 + moved, 28]))


def test_weights_of_stages() -> None:
    """The losses of equal stages differ by their weights and by the overlap that makes an object."""
    cascade = heads().train()
    for predictor in cascade.box_predictor:
        for parameter in predictor.parameters():
            torch.nn.init.zeros_(parameter)  # all classes are equally likely, and boxes stay
    maps = {str(level): torch.randn(1, 4, 16 // 2**level, 16 // 2**level) for level in range(4)}
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 28.0, 28.0]]), "labels": torch.tensor([1])}]
    losses = cascade(maps, [torch.tensor([[8.0, 8.0, 28.0, 20.0]])], [(64, 64)], targets)[1]
    expected = torch.tensor(3.0).log() * torch.tensor([1.0, 0.5, 0.25])
    torch.testing.assert_close(torch.stack([losses[f"loss_classifier_{n}"] for n in (1, 2, 3)]), expected)
    assert losses["loss_box_reg_1"] > 0  # an overlap of 0.6 is an object in the first stage
    assert losses["loss_box_reg_3"] == 0  # and none in the third one, where the true box alone is left
