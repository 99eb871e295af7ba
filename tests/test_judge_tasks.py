"""scripts/judge_tasks.py: real images are right, and those of another row are not."""

import torch

import judge_tasks
import ldmprobe
from ldmprobe.data.shapes import STYLES


def rows(columns, size, **options):
    kwargs = {"num_images": 40, "size": size, **options}
    data = ldmprobe.ImageData(
        "builtin:shapes", kwargs, columns=columns, label_column="style" if "styles" in options else None
    )
    data.setup()
    return next(data.reference_batches(24))


def test_boxes_of_real_images_are_right_and_those_of_others_are_not():
    batch = rows([ldmprobe.ObjectsColumn()], 16, max_shapes=3, overlap=False)
    asked = {"objects": ldmprobe.Layout(20, 8, max_boxes=3).observe(batch)["objects"]}
    right = judge_tasks.judge_layout(batch["image"], batch["image"], asked)
    wrong = judge_tasks.judge_layout(batch["image"].roll(1, 0), batch["image"], asked)
    assert right["boxes right"] == right["of real images"] > 0.9
    assert right["drawn outside boxes"] < 0.02
    assert wrong["boxes right"] < 0.1
    assert wrong["drawn outside boxes"] > 0.4
    shifted = asked["objects"].clone()
    shifted[..., 4] += (shifted[..., 4] >= 0) * torch.where(shifted[..., 4] % 4 == 3, -3, 1)  # the next shape
    assert judge_tasks.judge_layout(batch["image"], batch["image"], {"objects": shifted})["boxes right"] < 0.1


def test_a_style_is_told_by_what_it_looks_like():
    batch = rows([ldmprobe.ImageColumn("source", "source")], 32, styles=list(STYLES))
    asked = {"source": batch["source"], "class_labels": batch["label"]}
    found = judge_tasks.judge_style(batch["image"], batch["image"], asked)
    assert found["style right"] > 0.95
    assert found["IoU with the source, not hatched"] > 0.9
    assert found["color kept"] > 0.95
    kept = judge_tasks.judge_style(batch["source"], batch["image"], asked)  # the source as it was
    assert kept["style right"] < 0.05
