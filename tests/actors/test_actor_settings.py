from __future__ import annotations

from pathlib import Path

import pytest

from penstock.actors.settings import ActorSettings, DeliverySettings, HealthSettings, RetentionSettings
from penstock.runtime.settings import SettingsError, describe, load


def _load(tmp_path: Path, text: str) -> ActorSettings:
    file = tmp_path / "penstock.toml"
    file.write_text(text)
    return load(ActorSettings, file=file, environ={})


def test_the_defaults_are_those_of_the_source() -> None:
    settings = ActorSettings()
    assert settings.zone_info.key == "Asia/Seoul"
    assert (settings.retention.cron, settings.retention.days, settings.retention.batch) == ("0 10 * * *", 60, 5000)
    assert (settings.retention.enabled, settings.retention.dry_run) == (True, False)
    assert (settings.delivery.max_deliveries, settings.delivery.retry_minimum) == (5, 1.0)
    assert (settings.delivery.retry_maximum, settings.delivery.handler_timeout) == (60.0, 30.0)
    assert (settings.health.interval_up, settings.health.timeout) == (10.0, 2.0)
    assert (settings.health.interval_down_min, settings.health.interval_down_max) == (1.0, 10.0)
    assert settings.capture.buffer == 10_000


def test_every_setting_is_documented() -> None:
    assert [setting for setting in describe(ActorSettings) if not setting.doc] == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('zone = "Mars/Olympus"', "zone"),
        ('zone = "../etc/passwd"', "zone"),
        ('zone = ""', "zone"),
        ("[delivery]\nhandler_timeout = 60", "reclaim_idle"),
        ("[delivery]\nlease_ttl = 0", "lease_ttl"),
        ('[retention]\ncron = "every day"', "cron.*retention"),
        ('[retention]\ncron = "0 0 30 2 *"', "cron.*retention"),
        ("[retention]\ndays = 0", "days.*retention"),
        ("[delivery]\nmax_deliveries = 0", "max_deliveries.*delivery"),
        ("[delivery]\nretry_maximum = 0.5", "retry_maximum.*delivery"),
        ("[health]\ninterval_down_max = 0.5", "interval_down_max.*health"),
        ("[health]\ninterval = 1", "interval"),
        ("[delivery]\nretry_minimum = 70", "retry_maximum"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        _load(tmp_path, text)


def test_sections_are_filled_from_the_file(tmp_path: Path) -> None:
    settings = _load(
        tmp_path, '[retention]\ncron = "@hourly"\ndays = 1\n[delivery]\nretry_minimum = 70\nretry_maximum = 80'
    )
    assert settings.retention == RetentionSettings(cron="@hourly", days=1)
    assert settings.delivery == DeliverySettings(retry_minimum=70, retry_maximum=80)
    assert settings.health == HealthSettings()
