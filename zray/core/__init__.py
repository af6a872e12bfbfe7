"""Machines: the decisions of zray, as pure and deterministic state machines.

The contract
------------
- A machine is a slotted class. What happened to it arrives as a method ``on_<noun>_<past participle>(now, ...)``, what the
  local user wants as an imperative verb. Both change only the machine itself and append *effects* to ``self.out``.
- An effect is a flat tuple whose first field is one of the verbs in ``core.effects``. The composite (``owner``, ``agent``,
  ``gcs``) shares one ``out`` list with its leaves; the body (``runtime``) executes the effects and turns each outcome,
  failure included, into the next event.
- Machines are given the time (``now``, seconds on a monotonic clock) and never ask for it. They import no sockets,
  threads, files, clocks or random numbers: the same code serves processes, the simulator and local mode.
- ``check()`` asserts every invariant of a machine; tests and the simulator call it after each event. ``statistics()`` gives
  its sizes.
- Iteration order is part of behaviour: dicts, never sets.
"""
