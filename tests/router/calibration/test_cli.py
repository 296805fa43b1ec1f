from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from longroute.policies import policy_file
from longroute.policies.risk_controlled import RiskControlled
from longroute.router.calibration.cli import app
from longroute.router.calibration.outcomes import read_outcomes
from longroute.router.calibration.page import render
from longroute.router.errors import CalibrationError, ConfigError

PROGRAM = [sys.executable, "-c", "from longroute.router.calibration.cli import app; app()"]


@pytest.fixture
def questions(repository: Path) -> Path:
    return repository / "examples" / "calibration" / "questions.jsonl"


@pytest.fixture(autouse=True)
def words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGROUTE_EMBEDDING_MODEL", "none")


TWO = ("--strategy", "full", "--strategy", "rag")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_run_answers_the_example_and_a_second_time_nothing(questions: Path) -> None:
    first = call("run", str(questions), *TWO)
    assert first.exit_code == 0
    assert "24 of 24 outcomes in outcomes.jsonl: 0 failed" in first.stdout
    before = Path("outcomes.jsonl").read_bytes()
    assert call("run", str(questions), *TWO).exit_code == 0
    assert Path("outcomes.jsonl").read_bytes() == before


def test_run_says_what_a_limit_has_left_undone(questions: Path) -> None:
    done = call("run", str(questions), *TWO, "--max-tokens", "10")
    assert done.exit_code == 0
    assert "0 of 24 outcomes" in done.stdout
    assert "24 are left undone: the next case could pass max_tokens = 10" in done.stderr


def test_run_does_not_multiply_the_bill_unasked(questions: Path) -> None:
    """12 questions by full, rag and compressed: strategies of several calls are run by name."""
    assert "0 of 36 outcomes" in call("run", str(questions), "--max-tokens", "10").stdout


def test_run_takes_strategies_and_the_scorer(questions: Path) -> None:
    assert call("run", str(questions), "--strategy", "rag", "--scorer", "contains").exit_code == 0
    outcomes = {outcome.case_id: outcome for outcome in read_outcomes(["outcomes.jsonl"])}
    assert len(outcomes) == 12
    assert outcomes["keeper"].strategy == "rag"
    assert outcomes["keeper"].score == 1.0  # "Jonna Eide" stands in the quotation


def test_import_writes_a_new_file_only(questions: Path) -> None:
    call("run", str(questions), *TWO, "--out", "here.jsonl")
    done = call("import", "here.jsonl", "--out", "there.jsonl")
    assert done.exit_code == 0
    assert "24 outcomes on 3 groups of documents in there.jsonl" in done.stdout
    assert sorted(Path("there.jsonl").read_text().splitlines()) == sorted(Path("here.jsonl").read_text().splitlines())
    assert isinstance(call("import", "here.jsonl", "--out", "there.jsonl").exception, CalibrationError)


def test_import_explains_how_strategies_are_named(questions: Path) -> None:
    refused = call("import", ".", "--strategy", "long_context")
    assert isinstance(refused.exception, ConfigError)
    assert "NAME=OURS" in str(refused.exception)


def test_fit_writes_a_policy_file_that_can_be_read_and_says_where_it_is_thin(questions: Path) -> None:
    call("run", str(questions), *TWO)
    done = call("fit", "outcomes.jsonl", "--out", "policy.json")
    assert done.exit_code == 0
    assert "Fitted to 24 outcomes of 12 cases" in done.stdout
    assert "full on extractive: 12 outcomes" in done.stderr
    assert "extractive" in policy_file.read_weights(Path("policy.json")).beliefs["rag"]


def test_fit_with_a_risk_writes_a_guarantee_with_its_assumption_or_says_what_is_missing(questions: Path) -> None:
    call("run", str(questions), *TWO)
    done = call("fit", "outcomes.jsonl", "--risk", "0.02", "--out", "policy.json")
    assert done.exit_code == 0
    assert "points of quality against full" in done.stdout
    policy = policy_file.read(Path("policy.json"))
    assert isinstance(policy, RiskControlled)
    assert policy.guarantee.models == ("extractive",)


def test_report_writes_one_page_and_its_numbers(questions: Path) -> None:
    call("run", str(questions), *TWO)
    done = call("report", "outcomes.jsonl", "--out", "report.html")
    assert done.exit_code == 0
    assert "12 cases in report.html" in done.stdout
    page = Path("report.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is fetched
    assert render(json.loads(Path("report.json").read_text())) == page


def test_report_judges_a_policy_file_as_it_is(questions: Path) -> None:
    call("run", str(questions), *TWO)
    call("fit", "outcomes.jsonl", "--out", "policy.json")
    done = call("report", "outcomes.jsonl", "--policy", "policy.json")
    assert done.exit_code == 0
    assert "as it is" in Path("report.html").read_text()


def test_drift_of_a_handful_says_that_it_cannot_tell(questions: Path) -> None:
    call("run", str(questions), *TWO)
    done = call("drift", "outcomes.jsonl", "--fitted", "outcomes.jsonl")
    assert done.exit_code == 0
    assert "20" in done.stdout  # fewest outcomes that can tell


def test_reporting_on_nothing_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    refused = call("report", str(tmp_path / "empty.jsonl"))
    assert isinstance(refused.exception, CalibrationError)
    assert "no outcomes" in str(refused.exception)


# ---- a real engine ---------------------------------------------------------------------------------------------------


def make_model(folder: Path, texts: list[str]) -> Path:
    """A language model with random weights and a tokenizer of its own: it says nonsense, and always the same."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    words.train_from_iterator(texts, trainer)
    make_tokenizer: Any = PreTrainedTokenizerFast  # untyped there
    tokenizer = make_tokenizer(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(**shape, vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=8192)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def served(tmp_path: Path, questions: Path) -> Iterator[tuple[str, str]]:
    """Address and name of a small model behind `transformers serve`."""
    for package in ("transformers", "uvicorn", "fastapi"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'transformers[serving]'")
    texts = [path.read_text() for path in questions.parent.iterdir()]
    model = make_model(tmp_path / "model", texts)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--device", "cpu"]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except urllib.error.URLError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(model)
    finally:
        server.kill()
        server.wait()
        log.close()


def lasting(path: Path) -> dict[tuple[str, str, str], tuple[object, ...]]:
    """What two runs must agree on."""
    outcomes = list(read_outcomes([path]))
    found: dict[tuple[str, str, str], tuple[object, ...]] = {
        o.key: (o.status, o.score, o.prediction, o.prompt_tokens, o.completion_tokens) for o in outcomes
    }
    assert len(found) == len(outcomes)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the model libraries
def test_a_run_killed_half_way_ends_like_one_that_was_not(
    served: tuple[str, str], questions: Path, tmp_path: Path
) -> None:
    base_url, model = served
    unkilled, killed = tmp_path / "unkilled.jsonl", tmp_path / "killed.jsonl"
    arguments = [*PROGRAM, "run", str(questions), "--base-url", base_url, "--model", model, "--concurrency", "2"]
    surroundings = os.environ | {"LONGROUTE_MAX_OUTPUT_TOKENS": "24"}
    subprocess.run([*arguments, "--out", str(unkilled)], env=surroundings, check=True, timeout=60)

    running = subprocess.Popen([*arguments, "--out", str(killed)], env=surroundings)
    while running.poll() is None and (not killed.exists() or killed.read_bytes().count(b"\n") < 10):
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    done = killed.read_bytes().count(b"\n")
    assert 10 <= done < 36
    with killed.open("a") as file:  # and it died while writing a line
        file.write(json.dumps({"version": 1, "case_id": "keeper"})[:-5])
    subprocess.run([*arguments, "--out", str(killed)], env=surroundings, check=True, timeout=60)

    assert len(lasting(unkilled)) == 36  # 12 questions by full, rag and compressed
    assert {outcome.status for outcome in read_outcomes([unkilled])} == {"ok"}
    assert all(outcome.prompt_tokens > 100 for outcome in read_outcomes([unkilled]))
    assert lasting(killed) == lasting(unkilled)
