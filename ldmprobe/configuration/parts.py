"""What else is asked of the arguments of ``fit``, without training: the model and data that they name, or the options
that there are.
"""

from __future__ import annotations

from jsonargparse import capture_parser
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from ldmprobe.configuration.cli import LDMProbeCLI
from ldmprobe.configuration.errors import configuration_errors
from ldmprobe.data.images import ImageData
from ldmprobe.errors import ConfigurationError
from ldmprobe.training.latent_diffusion import LatentDiffusion


class _Parts(LDMProbeCLI):
    """Builds the model and the data, and nothing that trains or writes."""

    @configuration_errors("read")
    def before_instantiate_classes(self) -> None:
        self.config.trainer.callbacks, self.config.trainer.logger = None, False

    @configuration_errors("built")
    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate(self.config)
        self.model, self.datamodule = self.config_init.model, self.config_init.data


def build_parts(fit_arguments: list[str]) -> tuple[LatentDiffusion, ImageData]:
    """Return the model and the data that the arguments of ``fit`` name.

    Raises:
        ConfigurationError: they cannot be built, or are of other kinds.
    """
    cli = _Parts(fit_arguments, run=False)
    if isinstance(cli.model, LatentDiffusion) and isinstance(cli.datamodule, ImageData):
        return cli.model, cli.datamodule
    raise ConfigurationError(
        f"The configuration is of {type(cli.model).__name__} on {type(cli.datamodule).__name__}; only latents of "
        "LatentDiffusion on ImageData can be cached."
    )


class _Options(LDMProbeCLI):
    """Is built as far as to parse arguments."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        parser.parse_args(args)


def options_of(subcommand: str) -> list[str]:
    """Return the options of one of the Trainer's subcommands, without those of the classes that are named."""
    parser = capture_parser(lambda: _Options([subcommand]))
    (choices,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    return [name for action in choices[subcommand]._actions for name in action.option_strings]
