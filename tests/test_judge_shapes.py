"""scripts/judge_shapes.py: who draws what is asked passes, who does not fails."""

import pytest
import torch
from torch import nn

import judge_shapes
from ldmprobe import ClassConditioning, DiffusionModel, SmallCLIP, TextConditioning
from ldmprobe.data.builtin import load_builtin
from ldmprobe.data.shapes import COLORS, SHAPES
from ldmprobe.diffusion.diffusers_schedules import as_schedule
from tests.helpers import sd_scheduler

SIZE, CLASSES = 16, 20


@pytest.fixture(scope="module")
def classifier():
    return judge_shapes.train_classifier(SIZE, num_images=1500, num_steps=200)


class DrawsOneOfEach(nn.Module):
    """Predicts, whatever the noise, a real image of the class that is ``off`` further than what it is told."""

    def __init__(self, off: int) -> None:
        super().__init__()
        rows = load_builtin("shapes", num_images=400, size=SIZE)
        images = judge_shapes.pixels(rows)
        self.images = nn.Parameter(torch.stack([images[rows["label"].index(k)] for k in range(CLASSES)]))
        self.off = off

    def forward(self, z_t, t, condition):
        return self.images[(condition["class_labels"] + self.off) % CLASSES]


def drawing_model(off):
    schedule = as_schedule(sd_scheduler(prediction_type="sample"))
    return DiffusionModel(DrawsOneOfEach(off), schedule, (3, SIZE, SIZE), conditioning=ClassConditioning(CLASSES))


# Classes are numbered by color, then shape: the next one has another shape, the fourth next another color.
@pytest.mark.parametrize(
    ("off", "shape", "color"), [(0, "100.0%", "100.0%"), (1, "0.0%", "75.0%"), (4, "100.0%", "0.0%")]
)
def test_a_model_is_judged_by_whether_it_draws_what_it_is_asked_for(off, shape, color, classifier, monkeypatch, capsys):
    monkeypatch.setattr(judge_shapes, "train_classifier", lambda size: classifier)  # not again for each
    passed = judge_shapes.judge(
        drawing_model(off), list(SHAPES[:4]), list(COLORS)[:5], num_samples=40, num_steps=2, guidance_scale=1.0
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][:3] == ["shape", "right", shape]
    assert lines[2][:3] == ["color", "right", color]
    assert passed == (off == 0)
    assert all(float(line[-1].rstrip("%")) >= 97.5 for line in lines[1:4])  # of real images


def test_the_classifier_knows_shapes_and_colors_that_are_only_for_finetuning(classifier):
    rows = load_builtin("shapes", num_images=300, size=SIZE, seed=7, shapes=SHAPES[4:], colors=list(COLORS)[5:])
    assert judge_shapes.right_shares(classifier(judge_shapes.pixels(rows)), judge_shapes.labels(rows))["both"] > 0.97


def test_a_text_model_is_asked_by_the_captions_of_real_images():
    model = drawing_model(0)
    model.conditioning = TextConditioning(SmallCLIP("a red circle", width=16))
    rows = load_builtin("shapes", num_images=30, size=SIZE)
    asked = judge_shapes.ask(model, rows)
    assert model.conditioning.prompts == tuple(rows["caption"])
    for caption, (shape, color) in zip(rows["caption"], asked.tolist(), strict=True):
        assert f"{list(COLORS)[color]} {SHAPES[shape]}" in caption


def test_a_model_of_other_classes_is_not_judged():
    rows = load_builtin("shapes", num_images=5, size=SIZE, shapes=["cross"])
    with pytest.raises(SystemExit, match="The model has 20 classes, shapes and colors make 5"):
        judge_shapes.ask(drawing_model(0), rows)
