"""ClassifierGuidance: samples of a class, by a classifier of noisy latents and a model that was never told a class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ldmprobe.errors import ConfigurationError
from ldmprobe.io.difference import first_difference
from ldmprobe.models.denoiser import Condition
from ldmprobe.models.guidance.base import Answer, Asked, Guidance, GuidanceAround, Guided
from ldmprobe.models.guidance.classifier_free import as_guidance
from ldmprobe.models.noisy_classifier import ClassifierModel
from ldmprobe.types import PlainValues

_SAMPLES = 1000  # whose classes are looked at beforehand


class ClassifierGuidance(GuidanceAround):
    r"""Guidance by the gradient of a classifier: the score has :math:`s\, \nabla_z \ln p(y \mid z_t)` added to it,
    :math:`\hat\epsilon - s\, \sigma_t \nabla_z \ln p` (Dhariwal & Nichol, 2021, arXiv:2105.05233, algorithm 2; Song et
    al., 2021, arXiv:2011.13456, eq. 14), whatever the network predicts, for any sampler and noise process. s = 1 is
    Bayes' rule.

    Sample i is of the class that the model is told, where it is told one, and else of class i mod K. Where nothing of
    the data is left, α = 0, there is no guidance. Each pass costs one of the classifier with its gradient.

    Args:
        classifier: checkpoint of ``NoisyClassification``, or a ClassifierModel.
        scale: s; 0 is none.
        classes: of samples, in turn, in the place of the above.
        guidance: by the model's own condition: another guidance, or the scale of a classifier-free one.

    Raises:
        ConfigurationError: a scale that is not finite, classes that the classifier does not know, no classifier there;
            or, before sampling, one of other latents than the model's.
    """

    def __init__(
        self,
        classifier: str | ClassifierModel,
        scale: float = 1.0,
        classes: Sequence[int] | None = None,
        guidance: Guidance | float = 1.0,
    ) -> None:
        if not math.isfinite(scale):
            raise ConfigurationError(f"ClassifierGuidance got scale {scale}; expected a finite number, 0 for none.")
        self.classifier = classifier if isinstance(classifier, ClassifierModel) else ClassifierModel.load(classifier)
        most = self.classifier.num_classes - 1
        if classes is not None and not (classes and all(0 <= label <= most for label in classes)):
            raise ConfigurationError(f"ClassifierGuidance got classes {list(classes)}; expected labels 0 to {most}.")
        self.scale, self.classes = float(scale), None if classes is None else tuple(classes)
        self.guidance = as_guidance(guidance)

    def guide(self, answer: Answer, model: Guided) -> Answer:
        inner, prediction, classifier = self.guidance.guide(answer, model), model.schedule.prediction, self.classifier
        if self.scale == 0:
            return inner
        classifier.network.to(model.device)
        tells_classes = model.conditioning.tells_classes

        def guided(z_t: Tensor, asked: Asked, condition: Condition) -> Tensor:
            plain = inner(z_t, asked, condition)
            if asked.alpha == 0:
                return plain
            labels = self._labels(asked, condition if tells_classes else {}).to(z_t.device)
            with torch.enable_grad():
                z = z_t.detach().requires_grad_()
                log_probabilities = classifier.log_probabilities(z, asked.alpha, asked.sigma)
                chosen = log_probabilities.gather(1, labels[:, None]).sum()  # samples do not depend on each other
                (gradient,) = torch.autograd.grad(chosen, z)
            return prediction.shifted(plain, (self.scale * gradient).to(plain), asked.alpha, asked.sigma)

        return guided

    def _labels(self, asked: Asked, condition: Condition) -> Tensor:
        if self.classes is not None:
            return torch.tensor(self.classes)[asked.numbers % len(self.classes)]
        told = condition.get("class_labels")
        return asked.numbers % self.classifier.num_classes if told is None else told.long()

    @property
    def provenance(self) -> PlainValues:
        return {
            **self.guidance.provenance,
            "classifier_scale": self.scale,
            "classifier": self.classifier.fingerprint,
            "classifier_classes": None if self.classes is None else list(self.classes),
        }

    @property
    def shifts(self) -> bool:
        return self.scale != 0 or self.guidance.shifts

    def check(self, model: Guided) -> None:
        super().check(model)
        theirs, ours = self.classifier.codec, model.codec.description
        if theirs and (difference := first_difference(theirs, ours, "codec")):
            raise ConfigurationError(
                "The classifier was trained on other latents than this model's: its "
                f"{difference.replace('configuration', 'model')}. Train it with the model's `codec`, and the same data "
                "where its scale is measured."
            )
        conditioning = model.conditioning
        if self.classes is not None or not (conditioning.tells_classes and conditioning.ready):
            return
        told = conditioning.for_samples(torch.arange(_SAMPLES, device=model.device)).get("class_labels")
        if told is not None and int(told.max()) >= self.classifier.num_classes:
            raise ConfigurationError(
                f"The model is told class {int(told.max())} and the classifier knows {self.classifier.num_classes} "
                "classes; give ClassifierGuidance the `classes` that samples are to be of."
            )
