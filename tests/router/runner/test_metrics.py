from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from longroute.router.runner.engine import EngineMetrics
from longroute.router.runner.metrics import metrics_text

FAMILY = re.compile(r"# HELP (\S+) (\S.*)\n# TYPE (\S+) (counter|gauge)\n(\S+) (\S+)\n")


@given(st.integers(0, 2**53), st.floats(0, 1e12))
def test_every_metric_has_its_help_its_type_and_one_exact_value(tokens: int, seconds: float) -> None:
    now = EngineMetrics(decoded_tokens=tokens, decode_s=seconds, running=3)
    text = metrics_text(now, http_requests=7, http_refused=2)
    families = FAMILY.findall(text)
    assert FAMILY.sub("", text) == ""
    names = [name for name, *_ in families]
    assert len(set(names)) == len(names) == 2 + len(EngineMetrics.__dataclass_fields__)
    for about, _, typed, kind, sample, _ in families:
        assert about == typed == sample
        assert re.fullmatch(r"[a-z_]+", sample)
        assert sample.endswith("_total") == (kind == "counter")
    values = {sample: float(value) for *_, sample, value in families}
    assert values["longroute_runner_decoded_tokens_total"] == tokens
    assert values["longroute_runner_decode_seconds_total"] == seconds
    assert values["longroute_runner_running"] == 3
    assert values["longroute_runner_http_requests_total"] == 7
