"""Times training steps of a model on the machine it runs on: `python3 probe.py spec.json > results.jsonl`.

One file that runs alone, from Python 3.8 on: the standard library, NumPy for declared nets, torch for modules; no
package of ours. It goes to boards and phones as it is (a phone needs a Python, such as Termux'). Here: dummy inputs,
the steps, what the machine's own sensors say. Not here: where it runs (`targets`), what is made of its records
(`summary`). Invariants: standard output holds one JSON record per repeat and nothing else; what no sensor tells is
null, never 0. Its dummy numbers come from NumPy's or torch's own generator, as it has no other; no result depends on
them.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import re
import resource
import sys
import threading
import time

SCHEMA = 1
PERIOD_S = 0.1
"""Seconds between two looks at sensors and at processor time."""
NAP_S = 0.005
"""The shortest sleep of a slower machine that is played: shorter ones take longer than asked."""


def main(argv):
    """Run the spec named in `argv`; 0 also where a repeat failed, for its record says so."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a model's own file prints is no record
    folder = argv[argv.index("--folder") + 1] if "--folder" in argv else None
    with open(argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    plan = spec["plan"]
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(plan["threads"])
    threading.stack_size(1 << 18)  # the thread that watches takes little of a capped address space
    device = device_of(spec.get("sys", "/"))

    def say(record):
        head = {"schema": SCHEMA, "package": spec["package"], "device": device, "model": told(spec["model"])}
        out.write(json.dumps({**head, **record}, allow_nan=False) + "\n")
        out.flush()

    first = None
    try:
        sensors = Sensors(spec.get("sys", "/"))
        first = {"repeat": 0, "runtime_bytes": load_libraries(spec["model"]["kind"])}
        cap(spec.get("memory_cap_bytes"))
        forget_peak()
        before = rss_bytes()
        stepped = steps_of(spec["model"], plan, folder)
        slow = float(spec.get("slowdown") or 1.0)
        warm = [timed(stepped) * slow for _ in range(max(plan["warmup"], 1))]
        played = bool(spec.get("memory_cap_bytes")) or slow > 1.0
        first = {**first, "first_step_s": warm[0]}
        for repeat in range(plan["repeats"]):
            say({**first, "repeat": repeat, **measure(stepped, plan, sensors, before, slow, played)})
    except BaseException as error:
        status = status_of(error)
        say({"repeat": 0, **(first or {}), "status": status, "note": f"{type(error).__name__}: {error}"[:500]})
        if status == "crash":
            import traceback

            traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            return 130
    return 0


def measure(step, plan, sensors, before, slow, played):
    """One repeat: as many steps as its records and epochs make, watched from the side.

    `played`: another machine is played here; this one's sensors say nothing of it. A machine `slow` times slower is
    played by sleeping until it would be as far.
    """
    steps = math.ceil(plan["records"] / plan["batch"]) * plan["epochs"]
    limit_ns = int(plan["limit_s"] * 1e9)
    watch = Watch(sensors, not played)
    took, status, due = [], "ok", 0.0
    start, cpu = time.monotonic_ns(), time.process_time()
    with watch:
        for _ in range(steps):
            took.append(timed(step) * slow)
            due += took[-1]
            if slow > 1.0:
                early = due - (time.monotonic_ns() - start) / 1e9
                if early > NAP_S or len(took) == steps:
                    time.sleep(max(early, 0.0))
            if time.monotonic_ns() - start > limit_ns and len(took) < steps:
                status = "timeout"
                break
    wall = (time.monotonic_ns() - start) / 1e9
    cpu = time.process_time() - cpu
    peak = peak_bytes()
    found = {
        "status": status, "start_ns": start, "wall_s": wall, "steps": len(took),
        "records": min(len(took) * plan["batch"], plan["records"] * plan["epochs"]), "step_s": quantiles(took),
        "cpu_s": cpu, "cpu_pct_mean": 100.0 * cpu / (wall * cores()) if wall > 0 else None,
        "mem_peak_bytes": peak, "mem_delta_bytes": None if None in (peak, before) else max(peak - before, 0),
        "throttled": throttled(took),
    }  # fmt: skip
    if played:
        found["cpu_s"] = found["cpu_pct_mean"] = None
    return {**found, **watch.told(), **sensors.meant(watch)}


def timed(step):
    """Seconds of one step."""
    start = time.monotonic_ns()
    step()
    return (time.monotonic_ns() - start) / 1e9


def quantiles(values):
    """5, 50, 95 per cent and the longest of a list."""
    ranked = sorted(values)
    found = {f"p{q}": ranked[min(q * len(ranked) // 100, len(ranked) - 1)] for q in (5, 50, 95)}
    return {**found, "max": ranked[-1]}


def throttled(took):
    """1 where the last quarter of steps takes over 1.2 times the first quarter (medians); None of few steps."""
    if len(took) < 20:
        return None
    quarter = len(took) // 4
    first, last = sorted(took[:quarter])[quarter // 2], sorted(took[-quarter:])[quarter // 2]
    return int(last > 1.2 * first)


def status_of(error):
    """oom, op_missing or crash, of what was raised."""
    said = str(error).lower()
    if (
        isinstance(error, MemoryError)
        or "out of memory" in said
        or "can't allocate" in said
        or "unable to alloc" in said
    ):
        return "oom"
    if isinstance(error, (ImportError, NotImplementedError)) or "not implemented for" in said:
        return "op_missing"
    return "crash"


def told(model):
    """What a record says of the model."""
    names = ("name", "version", "params", "params_trainable", "storage_bytes", "assets_bytes", "wire_down_bytes",
             "wire_up_bytes", "flops_per_record")  # fmt: skip
    return {name: model.get(name) for name in names}


# ---- the model -------------------------------------------------------------------------------------------------------


def load_libraries(kind):
    """Import what a step needs, and do one of a toy, so that nothing is loaded later; resident bytes that this took."""
    before = rss_bytes()
    import numpy

    numpy.random.default_rng(0).random((2, 2), numpy.float32) @ numpy.ones((2, 2), numpy.float32)
    if kind == "module":
        import torch

        if importlib.util.find_spec("fieldfare") is not None:
            import fieldfare.load  # noqa: F401
        toy = torch.nn.Linear(2, 2)
        chosen = torch.optim.SGD(toy.parameters(), lr=0.1)
        toy(torch.ones(2, 2)).sum().backward()
        chosen.step()
    after = rss_bytes()
    return None if None in (before, after) else max(after - before, 0)


def steps_of(model, plan, folder):
    """A function that does one training step of the model."""
    return dense(model, plan) if model["kind"] == "dense" else module(model, plan, folder)


def dense(model, plan):
    """Linear layers and activations in NumPy, plain SGD (or Adam): forward, backward, update."""
    import numpy as np

    draw = np.random.default_rng(0)
    layers = [(kind, *size) for kind, *size in model["layers"]]
    shape, high = model["inputs"]["x"]["shape"], model["inputs"]["y"].get("below")
    width = math.prod(shape)
    x = draw.standard_normal((plan["batch"], width), np.float32)
    outputs = next(layer for layer in reversed(layers) if layer[0] == "linear")[2]
    labels = draw.integers(0, high or outputs, plan["batch"]) if model["loss"] == "cross_entropy" else None
    wanted = None if labels is not None else draw.standard_normal((plan["batch"], outputs), np.float32)
    weights = {}
    for i, layer in enumerate(layers):
        if layer[0] == "linear":
            bound = 1.0 / math.sqrt(layer[1])
            weights[i, "w"] = draw.uniform(-bound, bound, (layer[2], layer[1])).astype(np.float32)
            if layer[3]:
                weights[i, "b"] = np.zeros(layer[2], np.float32)
    update = adam(weights, plan["lr"]) if plan["optimizer"] == "adam" else sgd(weights, plan["lr"])

    def step():
        update(gradients(np, layers, weights, x, labels, wanted))

    return step


def gradients(np, layers, weights, x, labels, wanted):
    """Of the mean cross-entropy of labels `[b]`, or the mean over records of summed squares from `wanted` `[b, o]`."""
    held, h = [], x
    for i, layer in enumerate(layers):
        held.append(h)
        if layer[0] == "linear":
            h = h @ weights[i, "w"].T
            if (i, "b") in weights:
                h = h + weights[i, "b"]
        elif layer[0] == "relu":
            h = np.maximum(h, h.dtype.type(0))
        elif layer[0] == "tanh":
            h = np.tanh(h)
        elif layer[0] == "sigmoid":
            h = h.dtype.type(1) / (h.dtype.type(1) + np.exp(-h))
    one = h.dtype.type(1)
    if labels is not None:
        d = np.exp(h - h.max(1, keepdims=True))
        d /= d.sum(1, keepdims=True)
        d[np.arange(len(d)), labels] -= one
    else:
        d = (one + one) * (h - wanted)
    d /= h.dtype.type(len(d))
    found, out = {}, h
    for i in range(len(layers) - 1, -1, -1):
        below, layer = held[i], layers[i]
        if layer[0] == "linear":
            found[i, "w"] = d.T @ below
            if (i, "b") in weights:
                found[i, "b"] = d.sum(0)
            if i:
                d = d @ weights[i, "w"]
        elif layer[0] == "relu":
            d = d * (below > 0)
        elif layer[0] == "tanh":
            d = d * (one - out * out)
        elif layer[0] == "sigmoid":
            d = d * (out * (one - out))
        out = below
    return found


def sgd(weights, lr):
    """Weights less the rate times gradients, in place."""

    def update(found):
        for name, gradient in found.items():
            gradient *= weights[name].dtype.type(lr)
            weights[name] -= gradient

    return update


def adam(weights, lr, betas=(0.9, 0.999), eps=1e-8):
    """Adam, in place; two moments beside the weights."""
    moments = {name: (w * 0, w * 0) for name, w in weights.items()}
    taken = [0]

    def update(found):
        taken[0] += 1
        for name, g in found.items():
            first, second = moments[name]
            first += (1 - betas[0]) * (g - first)
            second += (1 - betas[1]) * (g * g - second)
            scale = lr * math.sqrt(1 - betas[1] ** taken[0]) / (1 - betas[0] ** taken[0])
            weights[name] -= scale * first / (second**0.5 + eps)

    return update


def module(model, plan, folder):
    """A torch module of the user's own file, trained as it stands there."""
    import torch

    torch.set_num_threads(plan["threads"])
    torch.manual_seed(0)
    thing = found_in(model["file"], model["object"], folder)
    loss = getattr(thing, "loss", None)
    thing = getattr(thing, "model", thing)
    loss = getattr(thing, "_loss", loss)
    if hasattr(thing, "module") and hasattr(thing, "init"):  # a net around a module
        thing = thing.module(thing.init(0))
    elif not isinstance(thing, torch.nn.Module):
        thing = thing()
    thing.train()
    inputs = [dummy(torch, one, plan["batch"]) for name, one in model["inputs"].items() if name != "y"]
    y = dummy(torch, model["inputs"]["y"], plan["batch"])
    losses = {
        "cross_entropy": torch.nn.functional.cross_entropy, "mse": torch.nn.functional.mse_loss,
        "l1": torch.nn.functional.l1_loss, "bce": torch.nn.functional.binary_cross_entropy_with_logits,
    }  # fmt: skip
    if model["loss"] in losses:
        loss = losses[model["loss"]]
    if model["loss"] == "cross_entropy":
        plain = loss

        def loss(out, wanted):
            if out.dim() > 2 and out.shape[:-1] == wanted.shape:  # of sequences: classes last
                return plain(out.flatten(0, -2), wanted.flatten())
            return plain(out, wanted)

    if not callable(loss):
        raise NotImplementedError(f"the loss {model['loss']!r} is not in the file and not known here")
    weights = [p for p in thing.parameters() if p.requires_grad]
    kind = torch.optim.Adam if plan["optimizer"] == "adam" else torch.optim.SGD
    chosen = kind(weights, lr=plan["lr"])

    def step():
        chosen.zero_grad(set_to_none=True)
        value = loss(thing(*inputs), y)
        value.backward()
        chosen.step()
        float(value.detach())  # the step is done, also where it runs elsewhere

    return step


def dummy(torch, one, batch):
    """A tensor of the wanted shape and type with numbers that could be."""
    shape, kind = (batch, *one["shape"]), getattr(torch, one["dtype"])
    if kind.is_floating_point:
        return torch.rand(shape, dtype=kind) if one.get("unit") else torch.randn(shape, dtype=kind)
    return torch.randint(0, max(int(one.get("below") or 2), 1), shape, dtype=kind)


def found_in(path, name, folder):
    """What the file calls `name`; a job file of fieldfare is read by fieldfare where that is installed."""
    beside = folder or os.path.dirname(os.path.abspath(path))
    if importlib.util.find_spec("fieldfare") is not None:
        from fieldfare.load import load_names

        return load_names(path, beside)[name]
    sys.path.insert(0, beside)
    spec = importlib.util.spec_from_file_location("bench_model", path)
    made = importlib.util.module_from_spec(spec)
    sys.modules["bench_model"] = made
    spec.loader.exec_module(made)
    return getattr(made, name)


# ---- the machine -----------------------------------------------------------------------------------------------------


def cap(bytes_):
    """Bytes that the process may take beyond what it has: address space, our reading of a memory limit."""
    if bytes_:
        have = pages(0)
        if have is not None:
            limit = int(have + bytes_)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def pages(which):
    """Bytes of address space (0) or resident (1); None where /proc does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[which]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return None


def rss_bytes():
    """Resident bytes now."""
    return pages(1)


def forget_peak():
    """Begin the peak of resident memory anew, where the system lets us."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass


def peak_bytes():
    """The most that was resident: of /proc, else as the system counts a process."""
    found = re.search(r"VmHWM:\s*(\d+) kB", read("/proc/self/status") or "")
    if found:
        return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def cores():
    """Cores of the machine."""
    return os.cpu_count() or 1


def read(path):
    """A small file's text without white space around; None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536).strip().strip("\0") or None
    except OSError:
        return None


def number(path, scale=1.0):
    """A small file's number times `scale`; None where there is none."""
    try:
        return float(read(path)) * scale
    except (TypeError, ValueError):
        return None


def listed(folder):
    """Names in a folder, in order; none where it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def device_of(root):
    """Vendor, model, chip, system, memory and cores, as the machine names itself; no serial number, no host name."""
    board = read(os.path.join(root, "proc/device-tree/model"))
    dmi = os.path.join(root, "sys/class/dmi/id")
    info = read(os.path.join(root, "proc/cpuinfo")) or ""
    chip = re.search(r"(?:Hardware|model name)\s*:\s*(.+)", info)
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', read(os.path.join(root, "etc/os-release")) or "", re.M))
    total = re.search(r"MemTotal:\s*(\d+) kB", read(os.path.join(root, "proc/meminfo")) or "")
    return {
        "vendor": board.split()[0] if board else read(os.path.join(dmi, "sys_vendor")),
        "model": board or read(os.path.join(dmi, "product_name")) or platform.machine() or None,
        "soc": chip[1].strip() if chip else None,
        "os": release.get("ID") or platform.system().lower() or None,
        "os_version": release.get("VERSION_ID") or platform.release() or None, "os_release_date": None,
        "ram_bytes": int(total[1]) * 1024 if total else None, "cores": cores(), "ai_score": None,
    }  # fmt: skip


class Sensors:
    """What the machine's own sensors say: battery, energy, temperatures, clocks; each may be absent."""

    def __init__(self, root):
        power = os.path.join(root, "sys/class/power_supply")
        kinds = {name: read(os.path.join(power, name, "type")) for name in listed(power)}
        self.batteries = [os.path.join(power, name) for name, kind in kinds.items() if kind == "Battery"]
        cap_ = os.path.join(root, "sys/class/powercap")
        packages = [os.path.join(cap_, name) for name in listed(cap_) if re.fullmatch(r"intel-rapl:\d+", name)]
        self.rapl = [one for one in packages if number(os.path.join(one, "energy_uj")) is not None]
        heat = os.path.join(root, "sys/class/thermal")
        zones = [os.path.join(heat, name, "temp") for name in listed(heat) if name.startswith("thermal_zone")]
        self.zones = [one for one in zones if number(one) is not None]
        cpu = os.path.join(root, "sys/devices/system/cpu")
        names = [name for name in listed(cpu) if re.fullmatch(r"cpu\d+", name)]
        clocks = [os.path.join(cpu, name, "cpufreq/scaling_cur_freq") for name in names]
        self.clocks = [one for one in clocks if number(one) is not None]

    def battery(self):
        """Charge as a share, None without a battery."""
        return None if not self.batteries else number(os.path.join(self.batteries[0], "capacity"), 0.01)

    def charge_mah(self):
        """What is left in the battery."""
        if not self.batteries:
            return None
        for name in ("charge_now", "charge_counter"):
            found = number(os.path.join(self.batteries[0], name), 1e-3)
            if found is not None:
                return found
        return None

    def full_mah(self):
        """What the battery holds."""
        return None if not self.batteries else number(os.path.join(self.batteries[0], "charge_full"), 1e-3)

    def battery_w(self):
        """I V of a battery that is being discharged; None otherwise."""
        if not self.batteries or read(os.path.join(self.batteries[0], "status")) != "Discharging":
            return None
        amps = number(os.path.join(self.batteries[0], "current_now"), 1e-6)
        volts = number(os.path.join(self.batteries[0], "voltage_now"), 1e-6)
        return None if None in (amps, volts) else abs(amps) * volts

    def rapl_j(self):
        """Joules counted so far, of each package."""
        return [number(os.path.join(one, "energy_uj"), 1e-6) for one in self.rapl]

    def heat_c(self):
        """The hottest zone; zones in thousandths of a degree."""
        found = [number(one, 1e-3) for one in self.zones]
        found = [one for one in found if one is not None and -50.0 < one < 200.0]
        return max(found) if found else None

    def hz(self):
        """Lowest and highest clock of a core now."""
        found = [one for one in (number(path, 1e3) for path in self.clocks) if one is not None]
        return (min(found), max(found)) if found else None

    def meant(self, watch):
        """Energy of what was watched, and by which sensor: RAPL, else the battery's current and voltage."""
        if self.rapl and len(watch.joules) == 2:
            total = 0.0
            for path, a, b in zip(self.rapl, *watch.joules):  # noqa: B905
                if a is None or b is None:
                    return {"energy_j": None, "energy_source": None}
                wraps = number(os.path.join(path, "max_energy_range_uj"), 1e-6) or 0.0
                total += b - a if b >= a else b + wraps - a
            return {"energy_j": total, "energy_source": "rapl"}
        if watch.watts:
            return {"energy_j": sum(w * s for w, s in watch.watts), "energy_source": "battery current"}
        return {"energy_j": None, "energy_source": None}


class Watch:
    """Looks at sensors and processor time ten times a second, from a thread, while it is entered (if `looks`)."""

    def __init__(self, sensors, looks=True):
        self.sensors, self.stop, self.looks, self.thread = sensors, threading.Event(), looks, None
        self.busy, self.heat, self.hz, self.watts, self.joules = [], [], [], [], []

    def __enter__(self):
        self.before = self.sensors.battery(), self.sensors.charge_mah()
        self.joules = [self.sensors.rapl_j()]
        if self.looks:
            self.thread = threading.Thread(target=self._look, daemon=True)
            self.thread.start()

    def __exit__(self, *_):
        self.stop.set()
        if self.thread is not None:
            self.thread.join()
        self.joules.append(self.sensors.rapl_j())
        self.after = self.sensors.battery(), self.sensors.charge_mah()

    def _look(self):
        wall, cpu = time.monotonic(), time.process_time()
        done = False
        while not done:
            done = self.stop.wait(PERIOD_S)
            now, used = time.monotonic(), time.process_time()
            if now - wall >= PERIOD_S / 2:
                self.busy.append(100.0 * (used - cpu) / ((now - wall) * cores()))
            for found, into in ((self.sensors.heat_c(), self.heat), (self.sensors.hz(), self.hz)):
                if found is not None:
                    into.append(found)
            watts = self.sensors.battery_w()
            if watts is not None:
                self.watts.append((watts, now - wall))
            wall, cpu = now, used

    def told(self):
        """What was seen, null where nothing was."""
        spent = None if None in (self.before[1], self.after[1]) else self.before[1] - self.after[1]
        return {
            "cpu_pct_max": max(self.busy) if self.busy else None,
            "battery_before": self.before[0], "battery_after": self.after[0], "charge_mah": spent,
            "battery_full_mah": self.sensors.full_mah(), "temp_c_max": max(self.heat) if self.heat else None,
            "freq_min_hz": min(one[0] for one in self.hz) if self.hz else None,
            "freq_max_hz": max(one[1] for one in self.hz) if self.hz else None,
        }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv))
