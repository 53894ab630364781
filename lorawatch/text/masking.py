"""Secrets on a command line are masked in all that is kept or shown: passwords, access tokens, keys.

What is masked goes by the words of a name (`--hf-token`, `model.api_key`, `DB_PASSWORD=`) and by the known forms of secrets
wherever they stand (`hf_…`, `sk-…`, the user part of a URL). A token of a name that is not known is taken for a secret,
since a masked word costs nothing; the special tokens of a vocabulary (`--pad_token`) are not.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

MASK = "***"


def _set_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SECRETS = _set_of("""
    password passwd passphrase passcode pswd pw secret secrets credential credentials creds apikey authorization auth bearer
    cookie cookies jwt otp""")
# Whose tokens and keys open something.
_SERVICES = _set_of("""
    hf hub huggingface github gitlab gh gl wandb comet neptune mlflow kaggle openai anthropic azure aws gcp google gemini
    cohere mistral groq slack discord telegram docker npm pypi modelscope swanlab api auth oauth access refresh bearer id
    secret private personal security login service admin app client deploy ci git db database""")
_KEYS = (_SERVICES - {"id", "db", "database", "git"}) | _set_of("""
    account storage subscription encryption signing master session shared license ssh gpg consumer""")
# Tokens of a text or of a vocabulary.
_OF_TEXT = _set_of("""
    pad padding eos bos unk unknown sep separator cls mask image img video audio speech vision special stop start end begin
    beginning eot eom eod im boi eoi fim prefix suffix middle think thinking newline placeholder sentinel per new max min num
    n first last next previous response instruction prompt byte char word subword label input output decoder encoder forced
    lang language""")
_OF_WORK = _set_of("forward backward single first second two one multi num per by low high band")
_PLAIN = frozenset({"", "true", "false", "none", "null", "yes", "no", "0", "1", MASK})
_TURNED_OFF = frozenset({"no", "skip", "disable", "without"})
_MARKER = re.compile(r"<[^>]*>|\[[A-Z_]+\]")  # what a vocabulary's special token looks like

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_RANDOM = re.compile(r"[0-9a-fA-F]{32,}|(?=.*[a-z])(?=.*[A-Z])(?=.*\d)[\w+/=-]{24,}")
_OPTION = re.compile(r"--[A-Za-z]|-[A-Za-z]{1,2}\Z")
_SCRIPT = re.compile(r"-[a-z]*c")  # `bash -lc`: what follows is a script, in which an assignment is only the beginning
_ASSIGNED = re.compile(r"([-+~]*([A-Za-z_][\w./-]*)=)(.+)", re.DOTALL)
_WITH_PASSWORD = re.compile(r"([^\s:/]+:)(?!\d+\Z).+", re.DOTALL)
_TAKES_PASSWORD = frozenset({"-u", "--user", "--proxy-user", "--basic-auth"})
# Programs whose short option takes a password, and whether a space may come between the two.
_SHORT = {"sshpass": ("-p", True), "redis-cli": ("-a", True), "zip": ("-P", True), "unzip": ("-P", True),
          "mysql": ("-p", False), "mysqldump": ("-p", False), "7z": ("-p", False)}  # fmt: skip

_VALUE = re.compile(
    r"""(?:\$\((?:[^()]|\([^()]*\))*\)|`[^`]*`|"(?:[^"\\]|\\.)*"|'[^']*'|\\.|[^\s"'\\;&|)<>])+|["']\S*""", re.DOTALL
)
_SHORTEST = 6  # of a secret that is looked for in a program's words
_LOOKED_AT = 128  # characters of a value; it is masked whole
_TELLING = re.compile("(?i)auth|bearer|cookie|cred|jwt|key|otp|pass|pat|pwd|secret|token")  # in every name of a secret
_NAMED = re.compile(r"""(?<![\w.\-])[-+~]{0,3}([A-Za-z_][\w.\-]*)[\\"'\]]{0,4}[ \t]*[=:][ \t]*""")
_NAMED_OPTION = re.compile(r"(?<![\w.\-])(--?[A-Za-z][\w.\-]*)(?:\s|\\\n)+(?!--?[A-Za-z])")
_HEADER = re.compile(
    r"""(?i)(?:(?<=-H)|(?<![\w-]))((?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]*(?:key|token|secret|auth)[\w-]*)"""
    r"""([\\"']{0,4}[ \t]*[:=][ \t]*[\\"']{0,4})([^\\"'\r\n]+)"""
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)([\w.~+/=-]{6,})")
_URL_USER = re.compile(
    r"""([A-Za-z][\w+.-]{0,30}://)(?:[^\s/?#'"<>]+|[^\s/:@'"<>]{0,200}:(?!\d+[/?#])[^\s'"<>]{0,200})@"""
)
_USER_AT_HOST = re.compile(
    r"""(?<![\w./-])(?!mailto:)[\w.+-]{1,64}:[^\s:/@'"<>]{1,256}@(?!sha256:|\d+(?:[\s,;]|\Z))(?=[\w(\[])"""
)
_SSHPASS = re.compile(r"(\bsshpass\s+-p\s*)[^\s;&|]+")
_USER_OPTION = re.compile(r"((?<!\S)(?:-u\s*|--(?:proxy-)?user[ =])[^\s:/]+:)(?!\d+(?!\S))[^\s;&|]+")
_LOGIN = re.compile(r"(?i)\b((?:re)?login\s+)[0-9a-f]{32,}")
_SIGNED = re.compile(r"""(?i)([?&](?:sig|signature|x-amz-signature|x-goog-signature)=)[^\s&'"]+""")
_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_(?:[A-Za-z0-9]{16,}|(?=[A-Za-z0-9]*[A-Z])(?=[A-Za-z0-9]*[a-z])[A-Za-z0-9]{8,})|api_org_[A-Za-z0-9]{16,}"
    r"|sk-(?=[\w-]*[0-9A-Z])[\w-]{16,}|[sr]k_(?:live|test)_\w{8,}|whsec_\w{16,}"
    r"|A[KS]IA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|gl[a-z]{2,5}-[\w-]{16,}"
    r"|xox[a-z]-[\w-]{8,}|xapp-[\w-]{16,}|eyJ[\w-]{6,}\.[\w-]{6,}\.[\w-]*|AIza[\w-]{30,}|ya29\.[\w-]{16,}"
    r"|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{16,}|dckr_pat_[\w-]{16,}|r8_[A-Za-z0-9]{30,}|gsk_[A-Za-z0-9]{30,}"
    r"|nvapi-[\w-]{20,}|wandb_v1_\w{16,}|local-[0-9a-f]{40}|SG\.[\w-]{16,}\.[\w-]{16,}|\d{8,10}:AA[\w-]{30,}"
    r")"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----|.*)"
    r"|(?<=hooks\.slack\.com/services/)[\w/-]+|(?<=discord\.com/api/webhooks/)[\w/-]+",
    re.DOTALL,
)


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """A command's arguments with the secrets among them as `***`; as many as there were."""
    masked: list[str] = []
    before = ""
    short: tuple[str, bool] | None = None
    for argument in arguments:
        masked.append(_argument(argument, before, short))
        short = _SHORT.get(argument.rpartition("/")[2], ("-p", True) if argument == "login" else short)
        before = argument
    return masked


def mask_text(text: str) -> str:
    """A text of a command line (a script for `bash -c`, JSON, a header) with the secrets in it as `***`."""
    structure = _structure(text)
    if structure is not None:
        return structure
    text = _HEADER.sub(rf"\1\2{MASK}", text)
    text = _mask_values(_NAMED, text)
    text = _mask_values(_NAMED_OPTION, text)
    text = _SSHPASS.sub(rf"\1{MASK}", text)
    text = _USER_OPTION.sub(rf"\1{MASK}", text)
    return mask_forms(text)


def mask_forms(text: str) -> str:
    """Any text, a program's own words for one, with what has the known form of a secret as `***`."""
    text = _URL_USER.sub(rf"\1{MASK}@", text)
    text = _USER_AT_HOST.sub(f"{MASK}@", text)
    text = _SIGNED.sub(rf"\1{MASK}", text)
    text = _LOGIN.sub(rf"\1{MASK}", text)
    text = _BEARER.sub(rf"\1{MASK}", text)
    return _FORMS.sub(MASK, text)


def mask_output(text: str, arguments: Sequence[str]) -> str:
    """What a program printed, without the secrets of its own command line and those of a known form.

    Args:
        arguments: The program's.
    """
    for secret in sorted(_secrets_of(arguments), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return mask_forms(text)


def mask_command_line(text: str) -> str:
    """A command as the shell takes it, with the secrets among its arguments as `***`."""
    try:
        arguments = shlex.split(text)
    except ValueError:  # cut within its quotes
        return mask_text(text)
    masked = mask_arguments(arguments)
    return text if masked == arguments else shlex.join(masked)


def _secrets_of(arguments: Sequence[str]) -> set[str]:
    """What `mask_arguments` takes out, where it is long enough to be found again in other text."""
    secrets = set()
    for argument, masked in zip(arguments, mask_arguments(arguments), strict=True):
        pieces = masked.split(MASK)
        at = len(pieces[0])
        for piece in pieces[1:]:
            end = argument.find(piece, at) if piece else len(argument)
            secrets.add(argument[at : max(end, at)])
            at = max(end, at) + len(piece)
    return {secret for secret in secrets if len(secret) >= _SHORTEST}


def _argument(argument: str, before: str, short: tuple[str, bool] | None) -> str:
    """An argument as it may be shown.

    Args:
        before: The argument in front of it.
        short: The password option of the program before it, and whether a space may come between it and the password.
    """
    if _OPTION.match(argument) is None:
        if before.startswith("-") and "=" not in before and not _turned_off(before) and _is_secret(before, argument):
            return MASK
        if before.lower().rstrip(":") in ("bearer", "authorization") or short == (before, True):
            return MASK
        if before.lower().endswith(("login", "key")) and _RANDOM.fullmatch(argument):
            return MASK
        if before in _TAKES_PASSWORD and (match := _WITH_PASSWORD.fullmatch(argument)):
            return match[1] + MASK
    if short is not None and argument.startswith(short[0]) and argument[2:3] != "=":
        return argument if argument == short[0] else f"{short[0]}{MASK}"
    assigned = _ASSIGNED.fullmatch(argument)
    if assigned is None:
        return mask_text(argument)
    lead, name, value = assigned.groups()
    if _is_secret(name, value) and not (_SCRIPT.fullmatch(before) and " " in value):
        return lead + MASK
    return lead + mask_text(value) if _is_structure(value) else mask_text(argument)


def _is_secret(name: str, value: str) -> bool:
    """Whether what stands behind this name is a secret."""
    if value.lower() in _PLAIN:
        return False
    words = [w.rstrip("0123456789").lower() for w in re.split(r"[^A-Za-z0-9]+", _CAMEL.sub(" ", name))]
    words = [w for w in words if w]
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in _SECRETS:
        return not (last.startswith("credential") and value.startswith(("/", "./", "~")))  # it names a file
    if last == "token":
        special = before not in _SERVICES | {""} and _MARKER.fullmatch(value)
        return before not in _OF_TEXT and not special
    if last in ("tokens", "pat"):
        return before in _SERVICES
    if last in ("key", "keys"):
        return before in _KEYS or bool(_RANDOM.fullmatch(value))
    if last == "pass":
        return before not in _OF_WORK
    if last == "pwd":
        return bool(before) or not value.startswith(("/", ".", "~"))
    return _is_joined(last)


def _is_joined(word: str) -> bool:
    """Whether a word is a secret's name written as one: `authtoken`, `dbpassword`."""
    for ending, owners in (
        ("token", _SERVICES),
        ("key", _KEYS),
        ("secret", None),
        ("password", None),
        ("passwd", None),
    ):
        if word.endswith(ending) and (owners is None or word.removesuffix(ending) in owners):
            return True
    return False


def _turned_off(option: str) -> bool:
    return option.lstrip("-").partition("-")[0].partition("_")[0].lower() in _TURNED_OFF


def _mask_values(named: re.Pattern[str], text: str) -> str:
    """A text with the values masked that stand behind a secret's name.

    Args:
        named: Ends where a value begins; its group is the name.
    """
    parts, done, at = [], 0, 0
    while match := named.search(text, at):
        at = match.end()
        if not _TELLING.search(match[1]):
            continue
        value = _VALUE.match(text, at, at + _LOOKED_AT)
        if value is None or _turned_off(match[1]) or not _is_secret(match[1], value[0].strip("\\\"'")):
            continue
        parts += [text[done:at], MASK]
        whole = _VALUE.match(text, at) or value
        done = at = whole.end() - (whole[0][-1] in ",}]" and whole.end() - at > 1)
    return "".join([*parts, text[done:]])


def _is_structure(text: str) -> bool:
    return text.lstrip()[:1] in ("{", "[")


def _structure(text: str) -> str | None:
    """A JSON text with its secrets masked; None where it is none."""
    if not _is_structure(text):
        return None
    try:
        data = json.loads(text)
        masked = _within(data, secret="")
        return text if masked == data else json.dumps(masked, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None


def _within(value: Any, secret: str) -> Any:
    """Plain data with its secrets masked.

    Args:
        secret: The name that it stands behind.
    """
    if isinstance(value, dict):
        return {mask_forms(key): _within(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_within(item, secret) for item in value]
    if isinstance(value, str):
        return MASK if _is_secret(secret, value) else mask_text(value)
    if value is None or isinstance(value, bool):
        return value
    return MASK if _is_secret(secret, str(value)) else value
