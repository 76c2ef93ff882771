"""An adb that replays a session: `FAKE_ADB` names its JSON file, `FAKE_ADB_STATE` a folder for what was used up.

A session is a list of calls, each with `like` (words that the call has in this order), `out`, `err`, `rc`, `sleep_s`,
`always` (may be used again), and for a pull `records`: lines of the file that is pulled, completed with the package
and the model of the spec that was pushed; `cut` leaves the last line torn. A call that the session does not have fails.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main() -> int:
    state = Path(os.environ["FAKE_ADB_STATE"])
    session = json.loads(Path(os.environ["FAKE_ADB"]).read_text("utf-8"))
    words = sys.argv[1:]
    with (state / "calls.txt").open("a", encoding="utf-8") as log:
        log.write(json.dumps(words) + "\n")
    said = " ".join(words)
    for place, call in enumerate(session["calls"]):
        used = state / f"used-{place}"
        if not all(part in said for part in call["like"]) or (used.exists() and not call.get("always")):
            continue
        used.touch()
        time.sleep(call.get("sleep_s", 0))
        for word in words:
            if word.endswith("spec.json") and Path(word).is_file():
                (state / "spec.json").write_bytes(Path(word).read_bytes())
        if "records" in call:
            spec = json.loads((state / "spec.json").read_text("utf-8"))
            head = {"schema": 1, "package": spec["package"], "model": spec["model"]}
            text = "".join(json.dumps({**head, **session.get("record", {}), **one}) + "\n" for one in call["records"])
            Path(words[-1]).write_text(text[:-40] if call.get("cut") else text, "utf-8")
        sys.stdout.write(call.get("out", ""))
        sys.stderr.write(call.get("err", ""))
        return call.get("rc", 0)
    with (state / "unexpected.txt").open("a", encoding="utf-8") as log:
        log.write(said + "\n")
    sys.stderr.write(f"error: the session has no call {said}\n")
    return 99


if __name__ == "__main__":
    sys.exit(main())
