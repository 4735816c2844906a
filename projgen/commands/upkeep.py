"""``projgen cache``, ``doctor`` and ``completion``: what keeps the program in order."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from projgen import cache, completion, doctor
from projgen.commands.output import print_json
from projgen.terminal import Terminal, format_bytes, format_count


def run_cache(args: argparse.Namespace) -> int:
    terminal = Terminal(sys.stdout)
    if args.action == "path":
        root = str(cache.cache_root())
        if args.json:
            return print_json({"path": root})
        terminal.write(root)
        return 0
    if args.action == "clear":
        count, size = cache.clear()
        if args.json:
            return print_json({"removed": count, "bytes": size})
        terminal.write(f"removed {format_count(count, 'kernel')}, {format_bytes(size)}")
        return 0
    entries = cache.entries()
    if args.json:
        return print_json(
            [
                {"path": str(entry.path), "key": entry.key, "title": entry.title,
                 "notes": entry.notes, "bytes": entry.size, "modified": entry.mtime}
                for entry in entries
            ]
        )  # fmt: skip
    titles = Counter(entry.title for entry in entries)
    for entry in entries:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime))
        key = terminal.paint(entry.key[:8], "dim")
        terminal.write(f"{key}  {day}  {format_bytes(entry.size):>7}  {entry.title}")
        if titles[entry.title] > 1:  # how it walks its arrays tells it from the others, mostly
            terminal.write(*(f"{'':37}{note}" for note in entry.notes))
    total = format_bytes(sum(entry.size for entry in entries))
    terminal.write(f"{format_count(len(entries), 'kernel')}, {total}, in {cache.cache_root()}")
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    findings = []
    terminal = Terminal(sys.stdout)
    for finding in doctor.examine():
        findings.append(finding)
        if not args.json:
            finding.draw(terminal)
            sys.stdout.flush()
    ill = any(finding.status == "problem" for finding in findings)
    if args.json:
        print_json({"healthy": not ill, "findings": [finding.to_json() for finding in findings]})
    return 1 if ill else 0


def run_completion(args: argparse.Namespace) -> int:
    sys.stdout.write(completion.SCRIPTS[args.shell])
    return 0
