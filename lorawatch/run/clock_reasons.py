"""Why a GPU's clocks are not higher, in words of no vendor, and as the number that journals and the history keep."""

from __future__ import annotations

import enum


class ClockReason(enum.IntFlag):
    """One or more reasons at a moment; 0: none.

    A line's `event_reasons` is the sum of these values, so they never change. Each driver in `lorawatch/telemetry/`
    translates its library's words into them.
    """

    IDLE = 0x1
    """Nothing runs."""
    CLOCK_SETTING = 0x2
    """The clocks were set by hand."""
    POWER_CAP = 0x4
    """The power limit; a GPU under full load usually works at it."""
    HARDWARE_SLOWDOWN = 0x8
    """The hardware has cut the clocks: heat, power brake or a fast drop of voltage."""
    SYNC_BOOST = 0x10
    """The clocks follow those of another GPU."""
    SOFTWARE_THERMAL = 0x20
    """The driver or the firmware keeps a temperature below its limit."""
    HARDWARE_THERMAL = 0x40
    """The hardware has cut the clocks because of heat."""
    POWER_BRAKE = 0x80
    """The power supply asks for less."""
    DISPLAY_CLOCK = 0x100
    """A display sets the clocks."""
    BOARD_LIMIT = 0x200
    """A limit of the board."""
    RELIABILITY = 0x400
    """The voltage may not rise further."""


SLOWDOWN_WORDS: dict[ClockReason, str] = {
    ClockReason.HARDWARE_SLOWDOWN: "hardware slowdown",
    ClockReason.SYNC_BOOST: "sync boost",
    ClockReason.SOFTWARE_THERMAL: "software thermal limit",
    ClockReason.HARDWARE_THERMAL: "hardware thermal limit",
    ClockReason.POWER_BRAKE: "power brake",
}
"""What throttles a GPU: heat, its hardware, the power brake, or the clocks of the GPUs that it is synchronized with. The power
cap is not among them: it is how a GPU works at its power limit."""
THROTTLED = int(sum(SLOWDOWN_WORDS))
"""All reasons of `SLOWDOWN_WORDS`."""
