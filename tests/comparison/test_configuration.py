"""Where configurations differ, and that a seed is no winner."""

import re

import ldmprobe.callbacks
from ldmprobe.audit.observation import is_probe
from ldmprobe.comparison.configuration import ONLOOKERS, configuration_differences, only_seeds_differ
from ldmprobe.comparison.findings import compare
from ldmprobe.comparison.page import comparison_html
from ldmprobe.tracking.comparable import read_runs
from tests.comparison.runs import NASTY, copied

SEEDED = """run_dir: {run_dir}
seed_everything: {seed}
model: {{lr: {lr}, seed: 3}}
trainer:
  logger: {{init_args: {{name: {run_dir}}}}}
  callbacks: [{{init_args: {{dirpath: {run_dir}/checkpoints}}}}]
"""

QUIET = """
  log_every_n_steps: 5
  enable_progress_bar: false
  callbacks:
  - {class_path: ldmprobe.callbacks.TrainingLoss, init_args: {every_n_steps: 10}}
  - {init_args: {dirpath: B/checkpoints}}
data: {init_args: {num_workers: 4}}
"""


def seeded(runs_dir, folder, **runs):
    """Copies of "plain", "other_seed" and "starved", in this order, with configurations as told: (seed, learning
    rate)."""
    for source, (name, (seed, lr)) in zip(("plain", "other_seed", "starved"), runs.items(), strict=False):
        run = copied(runs_dir / source, folder / name)
        (run / "config.yaml").write_text(SEEDED.format(run_dir=folder / name, seed=seed, lr=lr))
    return [folder / name for name in runs]


def test_page_says_where_the_configurations_differ(runs_dir, html):
    differing = configuration_differences([runs_dir / "plain", runs_dir / "starved"])
    assert differing == {"model.lr": ["0.1", NASTY], "probes[0].n": ["1", "not set"]}
    row = r"<th>model.lr</th><td>0.1</td><td>&lt;/script&gt;.*?</td><td>unknown</td>"
    assert re.search(row, html)  # other_seed has none
    assert "model.layers" not in html


def test_a_configuration_that_unfolds_without_end_is_cut_off(tmp_path):
    levels = [f"a{k}: &a{k} {{{', '.join(f'x{i}: *a{k - 1}' for i in range(10))}}}" for k in range(1, 9)]
    (tmp_path / "config.yaml").write_text("\n".join(["a0: &a0 {x: 1}", *levels]))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("b: 1")
    assert len(configuration_differences([tmp_path, other])) == 10_000 + 1


def test_where_only_seeds_differ_no_winner_is_declared(runs_dir, tmp_path):
    first, other = seeded(runs_dir, tmp_path, a=(0, 0.1), b=(1, 0.1))
    assert only_seeds_differ(first, other)
    assert list(configuration_differences([first, other])) == ["seed_everything"]
    found = compare(read_runs([first, other]))
    assert any(band.significant for band in found.gains[0].bands["b"])  # the pairs' own statistics do tell them apart
    html = comparison_html(found)
    assert "<b>One seed against another of the same configuration: there is no winner.</b>" in html
    assert "What another seed changes, and at which noise levels" in html
    assert 'class="better"' not in html
    assert 'class="worse"' not in html
    (other / "config.yaml").unlink()  # of unknown configurations nothing is taken for a seed
    assert not only_seeds_differ(first, other)
    assert not only_seeds_differ(other, other)


def test_the_name_of_a_run_is_no_part_of_what_else_is_set(tmp_path):
    def run(name, seed, **settings):
        (tmp_path / name).mkdir(exist_ok=True)
        own = f"{{run_dir: '{name}', seed: {seed}, trainer: {{logger: {{name: '{name}'}}, max_steps: 2000}}"
        rest = "".join(f", {key}: {value}" for key, value in settings.items())
        (tmp_path / name / "config.yaml").write_text(f"{own}{rest}}}")
        return tmp_path / name

    for names in (("1", "2"), ("digits", "digits2"), ("runs", "other")):
        runs = [run(name, seed, data="builtin:digits", of=f"{name}/latents") for seed, name in enumerate(names)]
        assert only_seeds_differ(*runs)
        assert configuration_differences(runs) == {"seed": ["0", "1"]}
    for key, values in (("lr", ("0.001", "0.0002")), ("data", ("digits", "shapes")), ("steps", ("20", "2"))):
        runs = [run(value, 0, **{key: value}) for value in values]
        assert not only_seeds_differ(*runs)
        assert configuration_differences(runs) == {key: list(values)}


def test_a_seed_is_one_whatever_is_shown_of_it_and_a_callback_that_may_train_is_not(runs_dir, tmp_path):
    first, other = seeded(runs_dir, tmp_path, a=(0, 0.1), b=(1, 0.1))
    config = other / "config.yaml"
    start = config.read_text().partition("\n  callbacks")[0]
    config.write_text(start + QUIET.replace("B/", f"{other}/"))
    assert "there is no winner" in comparison_html(compare(read_runs([first, other])))
    config.write_text(config.read_text().replace("TrainingLoss", "TimestepBalancer"))
    assert "there is no winner" not in comparison_html(compare(read_runs([first, other])))
    known = {name for name in ldmprobe.callbacks.__all__ if is_probe(getattr(ldmprobe.callbacks, name))}
    assert known - {"ProbeCallback"} <= ONLOOKERS
    assert "TimestepBalancer" not in ONLOOKERS


def test_another_configuration_may_win_and_its_sibling_seed_may_not(runs_dir, tmp_path):
    runs = seeded(runs_dir, tmp_path, a=(0, 0.1), b=(1, 0.1), c=(1, 0.2))
    found = compare(read_runs(runs))
    assert (found.other_seeds, found.of_chance) == ({"b"}, False)
    html = comparison_html(found)
    assert "there is no winner" not in html
    assert re.search(r"c is <span class=\"(better|worse)\">", html)
    assert not re.search(r"b is <span class=\"(better|worse)\">", html)
