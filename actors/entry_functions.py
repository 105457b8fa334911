"""Functions in Lua that scripts about the entries of a stream begin with."""

from __future__ import annotations

from typing import Final

__all__ = ["ENTRY_FUNCTIONS"]

# Ids are compared by their text, the shorter number first: Lua's numbers cannot hold 64 bits.
ENTRY_FUNCTIONS: Final = """
local function number_before(a, b)
    if #a ~= #b then return #a < #b end
    return a < b
end

local function before(a, b)
    local a_ms, a_seq = string.match(a, '(%d+)-(%d+)')
    local b_ms, b_seq = string.match(b, '(%d+)-(%d+)')
    if a_ms ~= b_ms then return number_before(a_ms, b_ms) end
    return number_before(a_seq, b_seq)
end

local function first(from, to)
    local found = redis.call('XRANGE', KEYS[1], from, to, 'COUNT', 1)
    return found[1] and found[1][1] or ''
end
"""
"""``before(a, b)``: whether `a` is the lesser id. ``first(from, to)``: the first id in a range of ``KEYS[1]``; empty if
there is none."""
