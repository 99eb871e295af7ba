"""What goes wrong in a long run does not end it, or ends it in a sentence: each test injects the real fault."""

import io
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image

from ldmprobe import ConfigurationError, ImageData, LatentDiffusion, RecordStore, write_report
from ldmprobe.callbacks import DDIMProbe, LoggerGuard, ReportWriter
from ldmprobe.tracking.logger_guard import failures
from ldmprobe.tracking.wandb import start_error
from tests.helpers import refused, tiny_unet
from tests.processes import finish, start, start_ranks
from tests.training.test_latent_diffusion import assert_same_state, digits, module, trainer

ROOT = Path(__file__).resolve().parent.parent


def ddim(every_n_steps=1):
    return DDIMProbe(every_n_steps, num_samples=16, num_steps=4, num_reference=256)


class Failing(DDIMProbe):
    """Raises ``error()`` half-way through sampling, in eval mode and with the random state advanced, at the steps
    ``at``."""

    def __init__(self, error, at):
        super().__init__(every_n_steps=1, num_samples=16, num_steps=4, num_reference=256)
        self.error, self.at = error, at

    def probe(self, trainer, pl_module, ranks):
        self.random_state = torch.get_rng_state()
        return super().probe(trainer, pl_module, ranks)

    def progress(self, trainer):
        scope = super().progress(trainer)
        if trainer.global_step not in self.at:
            return scope

        def fail(done, total):
            if done == 2:
                torch.rand(7)
                self.error()

        class Halfway:
            __enter__, __exit__ = (lambda self: fail), (lambda self, *error: None)

        return Halfway()


def _divide():
    return 1 / 0


def _ends_well(output, target, *arguments, **environment):
    """What a call in a process of its own says, which ends without an error."""
    (code,) = finish(start(target, *arguments, output=output, **environment))
    assert code == 0, output.read_text()[-3000:]
    return output.read_text()


# --- a probe that raises ---------------------------------------------------------------------------------------------


def test_training_goes_on_after_a_probe_that_raises_and_is_not_disturbed_by_it(tmp_path, caplog):
    plain, model, probe = module(), module(), Failing(_divide, at=(2, 3, 5))
    logger = CSVLogger(str(tmp_path), name="csv")
    trainer(tmp_path / "plain").fit(plain, digits())
    trainer(tmp_path / "run", callbacks=[probe], logger=logger).fit(model, digits())
    assert_same_state(plain.state_dict(), model.state_dict())
    assert [record.step for record in RecordStore(tmp_path / "run").read("ddim")] == [0, 1, 4, 6]
    told = [record for record in caplog.records if "Failing failed at step" in record.getMessage()]
    assert [bool(record.exc_info) for record in told] == [True, False, False]
    assert "in _divide" in caplog.text
    assert "ZeroDivisionError: division by zero" in caplog.text
    assert "Failing failed 3 times in this run" in caplog.text
    assert probe.failures == 3
    text = Path(logger.log_dir, "metrics.csv").read_text()
    assert "probe_failures/Failing" in text.splitlines()[0]


def test_a_probe_that_cannot_work_ends_the_run_before_its_first_step(tmp_path):
    model = module()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError) as caught:
        trainer(tmp_path, callbacks=[Failing(_divide, at=(0,))]).fit(model, digits())
    assert "Failing failed before the first optimizer step" in caught.value.__notes__[0]
    assert_same_state(before, model.state_dict())


def _misconfigured():
    raise ConfigurationError("Write this instead.")


def _sigterm():
    raise SIGTERMException


@pytest.mark.parametrize(("error", "kind"), [(_misconfigured, ConfigurationError), (_sigterm, SIGTERMException)])
def test_what_a_user_can_put_right_and_the_end_of_the_process_pass_through(tmp_path, error, kind):
    with pytest.raises(kind):
        trainer(tmp_path, callbacks=[Failing(error, at=(2,))]).fit(module(), digits())


def _failing_on_one_rank(run):
    at = (2,) if os.environ.get("LOCAL_RANK") == "1" else ()  # Lightning's launcher sets it for those that it starts
    trainer(run, max_steps=3, devices=2, strategy="ddp", callbacks=[Failing(_divide, at)]).fit(module(), digits())


def _failing_on_one_rank_of_lightnings_launcher(run):
    program = f"from tests.test_faults import _failing_on_one_rank; _failing_on_one_rank({str(run)!r})"
    Path("two.py").write_text(program)
    return subprocess.call([sys.executable, "two.py"], env={**os.environ, "PYTHONPATH": str(ROOT)})


LAUNCHERS = {
    "ranks": lambda run, output: start_ranks(2, _failing_on_one_rank, run, output=output),
    "Lightning's": lambda run, output: [start(_failing_on_one_rank_of_lightnings_launcher, run, output=output)],
}


@pytest.mark.parametrize("launcher", ["ranks", pytest.param("Lightning's", marks=pytest.mark.reliability)])
def test_an_error_on_one_of_several_processes_ends_the_run_rather_than_leave_the_others_waiting(tmp_path, launcher):
    output = tmp_path / "output.txt"
    codes = finish(*LAUNCHERS[launcher](tmp_path / "run", output), timeout=200)
    assert None not in codes
    assert 0 not in codes
    assert "ZeroDivisionError: division by zero" in output.read_text()


# --- SIGINT ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def _interruptible():
    """Lightning ignores further SIGINTs once it has caught one."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_during_a_probe_leaves_no_half_record_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    whole = module(ema_decay=None)
    trainer(tmp_path / "whole", max_steps=6, callbacks=[Failing(_divide, at=())]).fit(whole, digits())
    flags = []

    def interrupt():
        flags.extend(part.training for part in stopped.network.modules())
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal came too late")  # pragma: no cover

    def checkpoints():
        return ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, save_last=True)

    stopped, run, probe = module(ema_decay=None), tmp_path / "run", Failing(interrupt, at=(5,))
    fit = trainer(run, callbacks=[probe, checkpoints()], enable_checkpointing=True)
    with pytest.raises(SystemExit) as ended:
        fit.fit(stopped, digits())
    assert ended.value.code == 1
    assert flags
    assert not any(flags)
    assert all(part.training for part in stopped.network.modules())
    assert torch.equal(torch.get_rng_state(), probe.random_state)
    assert [record.step for record in RecordStore(run).read("ddim")] == [0, 1, 2, 3, 4]
    assert sorted(path.suffix for path in (run / "probes").iterdir()) == [".parquet"] * 5
    resumed = module(ema_decay=None)
    again = trainer(run, callbacks=[Failing(_divide, at=()), checkpoints()], enable_checkpointing=True)
    again.fit(resumed, digits(), ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert_same_state(whole.state_dict(), resumed.state_dict())
    assert [record.step for record in RecordStore(run).read("ddim")] == [0, 1, 2, 3, 4, 5, 6]


# --- a full disk -----------------------------------------------------------------------------------------------------


class Full(Callback):
    """No file may grow beyond 8 kB in steps 2 and 3, and from the end of training on."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.limit(8192 if trainer.global_step in (1, 2) else resource.RLIM_INFINITY)

    def on_fit_end(self, trainer, pl_module):
        self.limit(8192)

    def limit(self, size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _on_a_full_disk(run, log):
    logging.basicConfig(filename=log)  # opened before the disk is full
    probe = ddim()
    fit = trainer(run, max_steps=5, callbacks=[Full(), probe, ReportWriter()])
    fit.fit(module(), digits())
    Full().limit(resource.RLIM_INFINITY)
    (run / "ended").write_text(f"{fit.global_step} {probe.failures}")


def test_a_full_disk_costs_records_and_the_report_but_not_the_run(tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    _ends_well(tmp_path / "output.txt", _on_a_full_disk, run, log)
    assert (run / "ended").read_text() == "5 2"
    assert [record.step for record in RecordStore(run).read()] == [0, 1, 4, 5]
    assert {path.suffix for path in (run / "probes").iterdir()} == {".parquet"}  # nothing partial or hidden
    text = log.read_text()
    assert "DDIMProbe failed at step 2 (OSError: [Errno 27] File too large" in text
    first, second = text.split("DDIMProbe failed at step 3")
    assert "Traceback" in first
    assert "Traceback" not in second
    assert "There is no report of this run" in text
    assert not (run / "report.html").exists()
    assert not list(run.glob(".*partial"))
    assert write_report(run).exists()  # once there is room


def test_a_report_that_does_not_fit_is_told_in_a_sentence(tmp_path):
    trainer(tmp_path, max_steps=1, callbacks=[ddim()]).fit(module(), digits())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**13, hard))
    try:
        with refused(r"The report cannot be written to .*report\.html"):
            write_report(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("*report.html*")) + list(tmp_path.glob(".*report.html*"))


# --- loggers ---------------------------------------------------------------------------------------------------------


def test_a_logger_that_fails_is_told_once_and_the_others_go_on(tmp_path, caplog):
    lost, kept = (CSVLogger(str(tmp_path), name=name, flush_logs_every_n_steps=1) for name in ("lost", "kept"))

    class Lose(ReportWriter):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:  # its folder is gone, and a file in its place
                folder = Path(lost.log_dir)
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()
                folder.write_text("")

    plain, model = module(), module()
    trainer(tmp_path / "plain").fit(plain, digits())
    fit = trainer(
        tmp_path / "run", callbacks=[Lose(), LoggerGuard(), ddim(2)], logger=[lost, kept], log_every_n_steps=1
    )
    with caplog.at_level(logging.WARNING):
        fit.fit(model, digits())
    assert_same_state(plain.state_dict(), model.state_dict())
    assert failures(lost) > 2
    assert failures(kept) == 0
    told = [record.getMessage() for record in caplog.records if "CSVLogger failed" in record.getMessage()]
    assert len(told) == 2  # the first time, and the count
    assert f"failed {failures(lost) - 1} times" in told[1]  # once more in its own end
    rows = Path(kept.log_dir, "metrics.csv").read_text().splitlines()
    assert len(rows) > 6
    assert [record.step for record in RecordStore(tmp_path / "run").read("ddim")] == [0, 2, 4, 6]


class KillWandb(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
            children = [int(pid) for task in tasks for pid in task.read_text().split()]
            (core,) = [pid for pid in children if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text()]
            os.kill(core, signal.SIGKILL)
            os.waitpid(core, 0)


def _without_wandb(run):
    wandb, csv = WandbLogger(project="x", offline=True, save_dir=run), CSVLogger(str(run), name="csv")
    callbacks = [KillWandb(), ddim(2), LoggerGuard()]
    fit = trainer(run, max_steps=6, callbacks=callbacks, logger=[wandb, csv], log_every_n_steps=1)
    fit.fit(module(), digits())
    (run / "ended").write_text(f"{fit.global_step} {failures(wandb) > 2} {failures(csv)}")


def test_wandb_killed_in_the_middle_of_a_run_costs_only_its_curves(tmp_path):
    said = _ends_well(tmp_path / "output.txt", _without_wandb, tmp_path)
    assert (tmp_path / "ended").read_text() == "6 True 0"
    assert [record.step for record in RecordStore(tmp_path).read("ddim")] == [0, 2, 4, 6]
    assert said.count("WandbLogger failed (") == 1
    assert "times in this run, so its curves have gaps" in said
    text = next((tmp_path / "csv").rglob("metrics.csv")).read_text()
    assert text.count("\n") > 6


def _wandb_that_cannot_start(folder):
    short = {"init_timeout": 2, "x_graphql_retry_max": 0, "x_graphql_timeout_seconds": 2}
    for key in ("", 40 * "a"):  # without a key nobody is called; with one, nobody answers
        os.environ["WANDB_API_KEY"] = key
        try:
            WandbLogger(project="x", save_dir=folder, settings=short).experiment  # noqa: B018 (it starts here)
        except Exception as error:  # noqa: BLE001 (looked at by the test)
            print("TOLD", " ".join(str(start_error(error)).split()))


@pytest.mark.reliability
def test_wandb_that_cannot_start_is_told_with_what_to_write(tmp_path):
    unreachable = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    said = _ends_well(tmp_path / "output.txt", _wandb_that_cannot_start, tmp_path, **unreachable)
    told = [line for line in said.splitlines() if line.startswith("TOLD")]
    assert len(told) == 2, said
    assert "No API key configured" in told[0]
    assert "No API key" not in told[1]
    for line in told:
        assert "Weights & Biases could not start a run" in line
        assert "Set the logger's `offline: true`" in line


def test_only_wandbs_own_errors_are_put_down_to_it():
    assert start_error(ConnectionRefusedError("another service")) is None


# --- a corrupt image -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_corrupt_image_met_in_the_middle_of_training_is_named_by_its_row(tmp_path, num_workers):
    buffers = [io.BytesIO() for _ in range(40)]
    for i, buffer in enumerate(buffers):
        Image.fromarray(np.full((8, 8), 3 * i, dtype=np.uint8)).save(buffer, "png")
    images = [{"bytes": buffer.getvalue(), "path": None} for buffer in buffers]
    images[29]["bytes"] = images[29]["bytes"][:50]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": images}, features=features).save_to_disk(str(tmp_path / "images"))
    data = ImageData(str(tmp_path / "images"), batch_size=4, check_rows=5, num_workers=num_workers)
    model = LatentDiffusion(tiny_unet(channels=1), ema_decay=None)
    fit = trainer(tmp_path, max_steps=40, limit_val_batches=0)
    with refused(r"Row 29 of split 'train', column 'image': the image cannot be read .*truncated"):
        fit.fit(model, data)
    assert 0 < fit.global_step < 40


# --- weights that are lost -------------------------------------------------------------------------------------------


def test_a_model_with_nan_in_its_weights_is_probed_with_gaps_and_said_so(tmp_path, caplog):
    model = module(ema_decay=None)

    class Spoil(ReportWriter):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                with torch.no_grad():
                    pl_module.network.conv_in.weight.fill_(torch.nan)

    trainer(tmp_path, max_steps=3, callbacks=[Spoil(), ddim()]).fit(model, digits())
    first, *_, last = RecordStore(tmp_path).read("ddim")
    assert np.isfinite(first.curves["step_kl"].value).sum() >= 3
    assert np.isnan(last.curves["step_kl"].value).all()
    told = [record.getMessage() for record in caplog.records if "has NaN or Inf in it" in record.getMessage()]
    (only,) = told
    assert only == (
        "DDIMProbe at step 2 probes a network whose parameter conv_in.weight has NaN or Inf in it: from here on its "
        "records have gaps."
    )
