import signal

import pytest

from service.process.signals import ending_signals


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_hangup_ends_the_service_unless_it_was_started_to_outlive_that(disposition: signal.Handlers) -> None:
    before = signal.signal(signal.SIGHUP, disposition)
    try:
        assert (signal.SIGHUP in ending_signals()) == (disposition is signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)
