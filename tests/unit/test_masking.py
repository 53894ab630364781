"""Secrets on a command line: what is masked, and what is not."""

from __future__ import annotations

import shlex
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawatch.text.masking import MASK, mask_arguments, mask_command_line, mask_forms, mask_text

S = "s3cr3tValue"
HEX = "0123456789abcdef" * 2 + "01234567"  # as wandb's keys are

SECRET: list[list[str]] = [
    ["--token", S],
    ["--token=" + S],
    ["--hf-token", S],
    ["--hf_token", S],
    ["--hub_token=" + S],
    ["--hftoken", S],
    ["--HF_TOKEN", S],
    ["--api-key", S],
    ["--apiKey", S],
    ["--apikey=" + S],
    ["--openai_api_key", S],
    ["--wandb-key", S],
    ["--password", S],
    ["--password", S + " with words"],
    ["--password=" + S + "&more words"],
    ["--db-passwd", S],
    ["--dbPassword", S],
    ["--pass", S],
    ["--secret", S],
    ["--client-secret", S],
    ["--access-key", S],
    ["--secret-access-key", S],
    ["--aws_secret_access_key=" + S],
    ["--auth-token", S],
    ["--use-auth-token", S],
    ["--token2", S],
    ["--foo-token", S],  # not known: the safe side
    ["--token", "-" + S],
    ["-token", S],
    ["--key", HEX],
    ["--credentials", S],
    ["-e", "HF_TOKEN=" + S],
    ["-eHF_TOKEN=" + S],
    ["--env=HF_TOKEN=" + S],
    ["--export=ALL,HF_TOKEN=" + S],
    ["env", "HF_TOKEN=" + S, "python", "train.py"],
    ["env", "DB_PASSWORD=" + S + " with words", "python"],
    ["AWS_SECRET_ACCESS_KEY=" + S],
    ["-H", "Authorization: Bearer " + S],
    ["-H", "authorization: basic " + S],
    ["-H", "X-Api-Key: " + S],
    ["--header=Authorization: Token " + S],
    ["--header", "Cookie: session=" + S],
    ["Bearer", S],
    ["model.api_key=" + S],
    ["+model.api_key=" + S],
    ["++hub.token=" + S],
    ["model[api_key]=" + S],
    ['{"api_key": "' + S + '", "steps": 3}'],
    ['{"p\\u0061ssword": "' + S + '"}'],
    ['{"hub": {"access_tokens": ["' + S + '"]}}'],
    ['{"password": 987654321}'],
    ["--config={'hub_token': '" + S + "'}"],
    ['--config={"hub_token": "' + S + '"}'],
    ["{api_key: " + S + "}"],
    ["bash", "-c", "python train.py --token " + S + " --steps 3"],
    ["bash", "-c", 'python train.py --token "' + S + ' more" --steps 3'],
    ["bash", "-c", "export HF_TOKEN=" + S + "; python train.py"],
    ["bash", "-c", "export HF_TOKEN='" + S + " more' && python train.py"],
    ["bash", "-c", 'sh -c "python train.py --api-key=' + S + '"'],
    ["bash", "-c", "train --password \\\n  " + S],
    ["bash", "-c", 'curl -d \'{"token": "' + S + "\"}' host"],
    ["bash", "-c", 'curl -d "{\\"token\\": \\"' + S + '\\"}" host'],
    ["wandb", "login", HEX],
    ["bash", "-c", "wandb login " + HEX],
    ["sshpass", "-p", S, "ssh", "host"],
    ["env", "sshpass", "-p", S, "ssh", "host"],
    ["bash", "-c", f"sshpass -p {S} ssh host"],
    ["bash", "-c", f"curl -u me:{S} https://x"],
    ["bash", "-c", f"curl -ume:{S} https://x"],
    ["bash", "-c", f"HF_TOKEN=$(echo {S}) python train.py"],
    ["bash", "-c", f"HF_TOKEN=`echo {S}` python train.py"],
    ["curl", f"-HAuthorization: Basic {S}"],
    ["env", "mysql", "-p" + S],
    ["env", "redis-cli", "-a", S],
    ["docker", "login", "-u", "me", "-p", S],
    ["curl", "-u", "me:" + S, "https://host"],
    ["https://me:" + S + "@host/path"],
    ["https://" + S + "@host/path"],
    ["--index-url=https://me:" + S + "@host/simple"],
    ["redis://:" + S + "@host:6379/0"],
    ["me:" + S + "@host"],
    ["https://host/file?token=" + S + "&part=1"],
    ["https://host/file?part=1&X-Amz-Signature=" + S],
    ["postgres://u:p@ss" + S + "@host/db"],
    ["s3://KEY:a/" + S + "/b@bucket/key"],
    ["srun", "--export=ALL,HF_TOKEN=" + S + ",API_KEY=" + S],
    ["--model_args", "pretrained=x,token=" + S],
    ["python", "-c", "import os; os.environ['HF_TOKEN'] = '" + S + "'"],
    ["--creds", S],
]
FORMS = [
    "hf_" + "a1B2" * 8,
    "hf_" + "abcdefghijklmnopqrstuvwxyz",
    "sk-" + "a1B2" * 8,
    "sk-proj-" + "a1_2" * 8,
    "sk-ant-api03-" + "a1B2" * 8,
    "AKIA" + "ABCD1234EFGH5678",
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2" * 9,
    "glpat-" + "a1B2" * 5,
    "xoxb-" + "123-456-abc",
    "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl",
    "AIza" + "a1B2" * 9,
    "nvapi-" + "a1B2" * 9,
    "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
    "https://hooks.slack.com/services/T0/B0/abc",
]
PLAIN: list[list[str]] = [
    ["--schedule", "0:1e-4@100"],
    ["--tokenizer", "gpt2"],
    ["--tokenizer_name=meta-llama/Llama-3.1-8B"],
    ["--max_new_tokens", "256"],
    ["--max-tokens=5"],
    ["--tokens", "50M"],
    ["--num_key_value_heads", "8"],
    ["--pad_token", "<pad>"],
    ["--pad-token=[PAD]"],
    ["--eos-token", "</s>"],
    ["--bos_token", "<s>"],
    ["--eos-token-id", "2"],
    ["--image_token", "<image>"],
    ["--special_tokens", "<a>,<b>"],
    ["--chatml-token", "<|im_start|>"],
    ["--cost-per-token", "0.01"],
    ["--keyframes", "12"],
    ["--key_dim", "64"],
    ["--monkey", "george"],
    ["--text-key", "content"],
    ["--image_key=pixels"],
    ["--sort-key", "length"],
    ["--key", "label"],
    ["--token-file", "/run/secrets/token"],
    ["--credentials", "/etc/key.json"],
    ["--push-to-hub-token", "true"],
    ["--use_auth_token", "--model", "x"],
    ["--no-password", "host"],
    ["--password-file", "p.txt"],
    ["--passes", "3"],
    ["--two-pass", "3"],
    ["--pwd", "/work"],
    ["PWD=/work"],
    ["--author", "me"],
    ["--secretary", "me"],
    ["docker", "run", "--user", "1000:1000", "-p", "80:80", "image:tag@sha256:abc"],
    ["python", "-u", "train.py", "lr=1e-4", "model.name=a/b"],
    ["--model", "hf_models/llama", "--revision", HEX],
    ["git+https://github.com/org/repo@main"],
    ["git@github.com:org/repo.git"],
    ["https://host:8080/path?x=1"],
    ["--out", "/data/task-2024-learning-rate-sweep-7"],
    ["bash", "-c", "torchrun --nproc-per-node 2 train.py --tokenizer x && echo done"],
    ['{"max_tokens": 5, "pad_token": "<pad>", "tokenizer": "x"}'],
    ["", " ", "-", "--", "=", "--=", "a b"],
]


@pytest.mark.parametrize("arguments", SECRET, ids=" ".join)
def test_a_secret_is_masked_and_nothing_else_is_lost(arguments: list[str]) -> None:
    masked = mask_arguments(["python", "train.py", *arguments, "--steps", "3"][0 if arguments[0] not in
                            ("sshpass", "wandb", "docker", "curl", "env", "bash") else 2 :])  # fmt: skip
    assert S not in "\n".join(masked)
    assert HEX not in "\n".join(masked)
    assert "987654321" not in "\n".join(masked)
    assert MASK in "\n".join(masked)
    assert masked[-2:] == ["--steps", "3"]
    assert mask_arguments(masked) == masked


@pytest.mark.parametrize("form", FORMS)
def test_the_known_forms_of_secrets_are_masked_wherever_they_stand(form: str) -> None:
    for text in (form, f"--pad_token={form}", f"a {form} b", f"'{form}'", f"x/{form}", f"name={form}"):
        assert form[-6:] not in mask_text(text).replace(MASK, ""), text
        assert form[-6:] not in mask_forms(text).replace(MASK, ""), text


@pytest.mark.parametrize("arguments", PLAIN, ids=" ".join)
def test_what_is_no_secret_stays_as_it_was_typed(arguments: list[str]) -> None:
    assert mask_arguments(arguments) == arguments


def test_what_stands_beside_a_secret_in_a_script_stays() -> None:
    for script in (f"HF_TOKEN={S} python t.py --lr 1", f"HF_TOKEN='{S} x' python t.py --lr 1"):
        assert mask_arguments(["bash", "-lc", script]) == ["bash", "-lc", "HF_TOKEN=*** python t.py --lr 1"]
    assert mask_text(f"{{api_key: {S}, lr: 1}}") == "{api_key: ***, lr: 1}"
    assert mask_text(f"train --token {S}; echo done") == "train --token ***; echo done"
    assert mask_text(f"https://me:{S}@host:8080/a@b?x=1&token={S}&y=2") == "https://***@host:8080/a@b?x=1&token=***&y=2"


def test_a_command_line_of_the_history_is_masked_as_its_arguments_are() -> None:
    typed = ["python", "my train.py", "--token", S, "", "--name", "it's"]
    masked = mask_command_line(shlex.join(typed))
    assert shlex.split(masked) == ["python", "my train.py", "--token", MASK, "", "--name", "it's"]
    assert mask_command_line(masked) == masked
    assert mask_command_line("python --pad_token '<pad>'") == "python --pad_token '<pad>'"
    assert S not in mask_command_line(f"python 'cut --token {S}")


@given(st.lists(st.text(alphabet=string.ascii_letters + "-=:\"'{}\\ \n@/.\udcff", max_size=40), max_size=6))
def test_any_arguments_are_taken_and_as_many_come_back(arguments: list[str]) -> None:
    masked = mask_arguments(arguments)
    assert len(masked) == len(arguments)
    assert mask_arguments(masked) == masked


@pytest.mark.parametrize(
    "piece",
    [
        "-",
        "--token ",
        'token="',
        "token='",
        "a.",
        "-+~",
        '\\"',
        "{",
        "[",
        "hf_",
        "x:y@",
        "eyJa.",
        "a://",
        "k=",
        "key=",
        "x_token=<a>",
        " \\\n",
    ],
)
def test_no_argument_takes_long(piece: str) -> None:
    text = piece * (120_000 // len(piece))
    began = time.process_time()
    mask_arguments(["x", text, "--token", text])
    assert time.process_time() - began < 2
