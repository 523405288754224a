"""Files for clusters: each is what its engine reads; and the command in them may run any number of times."""

import ast
import json
import shutil
import subprocess

import yaml

from scratchlm.train import recipes

WORDS = ["gpt2-small", "train.steps=100", "corpus.name=tinystories", "--nodes", "2", "--gpus", "4"]
COMMAND = [
    "train",
    "gpt2-small",
    "train.steps=100",
    "corpus.name=tinystories",
    "--folder",
    "/runs/gpt2-small",
]
COMMAND += ["--restartable"]
TINY = ["corpus.num_train=40", "corpus.num_valid=4", "model.num_layers=1", "model.d_model=16"]
TINY += ["model.num_heads=2", "train.steps=4", "train.batch_tokens=512", "tokenizer.vocab_size=300"]


def test_the_slurm_file_is_a_shell_script_that_starts_one_torchrun_a_machine(cli, tmp_path):
    found = cli("launch", "slurm", *WORDS)
    script = tmp_path / "job.sh"
    script.write_text(found.out, encoding="utf-8")
    subprocess.run(["bash", "-n", script], check=True)
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=4" in found.out
    assert f"-m scratchlm {' '.join(COMMAND).replace('/runs', 'runs')} &" in found.out
    assert "srun --kill-on-bad-exit=1 --cpus-per-task 32 torchrun" in found.out


def test_words_are_quoted_for_the_shell(cli, tmp_path):
    found = cli("launch", "slurm", "demo", 'prompt=it\'s "here"; rm -rf $HOME')
    script = tmp_path / "job.sh"
    echo = "printf '%s\\n'" + found.out[found.out.rindex(" torchrun ") :]
    script.write_text("SLURM_JOB_ID=1 first=a port=2\n" + echo, encoding="utf-8")
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=True)
    assert 'prompt=it\'s "here"; rm -rf $HOME' in done.stdout.splitlines()


def test_the_skypilot_file_names_machines_and_command(cli):
    found = yaml.safe_load(cli("launch", "skypilot", *WORDS, "--gpu", "h200").out)
    assert (found["num_nodes"], found["resources"]["accelerators"]) == (2, "H200:4")
    assert " ".join(COMMAND) in found["run"]
    assert found["file_mounts"]["/runs"]["mode"] == "MOUNT"


def test_the_kubernetes_file_is_a_job_of_workers_with_gpus(cli):
    found = yaml.safe_load(cli("launch", "kubernetes", *WORDS).out)
    worker = found["spec"]["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    assert (found["kind"], worker["replicas"], found["spec"]["nprocPerNode"]) == ("PyTorchJob", 2, "4")
    assert container["command"] == ["torchrun", "-m", "scratchlm", *COMMAND]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4


def test_the_ray_file_is_a_program_with_one_worker_a_gpu(cli):
    tree = ast.parse(cli("launch", "ray", *WORDS).out)
    words = next(n for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "WORDS")
    assert ast.literal_eval(words.value) == COMMAND
    numbers = [n.value.value for n in ast.walk(tree) if isinstance(n, ast.keyword) and n.arg == "num_workers"]
    assert numbers == [8]


def test_an_unknown_engine_and_recipe_are_refused(cli):
    assert cli("launch", "pbs", "demo").code == 2
    assert "unknown recipe 'nothing-like-it'" in cli("launch", "slurm", "nothing-like-it").err


def test_rows_that_cannot_be_shared_are_told_before_the_job_waits_in_a_queue(cli):
    error = cli("launch", "slurm", "gpt2-small", "--nodes", 3).error
    assert "a step of 512 rows cannot be shared evenly by 24 processes" in error


def test_what_other_machines_cannot_see_is_refused(cli, tmp_path):
    recipe = tmp_path / "mine.toml"
    text = recipes.find("demo").read_text(encoding="utf-8").replace('name = "demo"', 'name = "2 nights"')
    recipe.write_text(text, encoding="utf-8")
    assert "is no file in the container" in cli("launch", "kubernetes", str(recipe)).err
    assert "must begin with /" in cli("launch", "ray", "demo", "--folder", "runs/a").err
    assert "#SBATCH --job-name=run-2-nights" in cli("launch", "slurm", str(recipe)).out


def test_a_restartable_run_begins_goes_on_and_is_done_with_the_same_words(cli, tmp_path):
    words = ["train", "demo", *TINY, "--folder", str(tmp_path / "run"), "--restartable"]
    assert cli(*words, "train.save_every=2").code == 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert cli(*words, "train.save_every=2").code == 0, "a finished run is left alone"
    assert (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8") == rows
    # as if it had been killed between steps 2 and 4
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").iterdir()))
    assert cli(*words, "train.save_every=2").code == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))["steps"] == 4
    assert not (tmp_path / "run-2").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine", encoding="utf-8")
    refused = cli("train", "demo", *TINY, "--folder", str(tmp_path / "other"), "--restartable")
    assert "is there already and is no run folder" in refused.err
