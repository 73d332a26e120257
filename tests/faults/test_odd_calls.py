"""Every door takes what is good and refuses what is not, in one typed error; `make torture` makes more calls."""

from fuzz import fuzz_calls


def test_good_values_are_taken_and_bad_ones_are_refused():
    calls = list(fuzz_calls(seed=0, n=200))
    faults = [call.fault for call in calls if call.fault]
    assert len(calls) == 200 and {call.outcome for call in calls} == {"accepted", "typed"}, faults
    assert not faults, "\n".join(faults)
