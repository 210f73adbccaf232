"""Spoken words: said by `espeak-ng` in several voices, seen as log-mel frames. Synthetic speech."""

import concurrent.futures
import hashlib
import io
import itertools
import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np

from wdjax.data.archive import read_arrays
from wdjax.writing import cache_folder, write_whole

PROGRAM = "espeak-ng"
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
"""The ten command words of Speech Commands (Warden 2018, arXiv:1804.03209)."""
VOICES = {
    "train": ("en-us+m2", "en-us+m3", "en-us+f2", "en-gb+m4", "en-gb+f1")
    + ("en-gb-scotland+m5", "en-gb-scotland+f4", "en-gb-x-rp+m6", "en-gb-x-rp+f3"),
    "test": ("en-us+m7", "en-gb+f5", "en-gb-x-gbclan+m8"),
}
"""Those of the choosing part, and others to be judged on."""
SPEEDS = (130, 160, 190)
"""Words a minute."""
PITCHES = (25, 40, 55, 70)
"""Of espeak-ng's 0 to 99."""
RATE = 22050
"""Samples a second, as espeak-ng gives them."""
FRAMES, MELS = 48, 32
HOP, WINDOW = 441, 1024
"""Samples between frames (20 ms) and in one (46 ms)."""
RANGE = 80.0
"""Decibels below the loudest that count."""
SECONDS = 60


def read_spoken(part: str) -> tuple[np.ndarray, np.ndarray]:
    """`frames[example, time, mel, 1]` in [0, 1], and the number of the word that each is.

    Each of ten words is said at three speeds and four pitches by each voice: 1,080 by the nine of
    the `"train"` part, 360 by the three of the `"test"` part, which are in no other. Frames are
    those of `log_mel`. What a version of espeak-ng once said is read from the cache.

    Raises:
      ImportError: if espeak-ng is not installed.
      ValueError: if it does not say a word.
    """
    program = _program()
    path = _cache_file(program, part)
    if path is not None and path.is_file():
        try:
            kept = read_arrays(path, ("frames", "labels"))
            return kept["frames"], kept["labels"]
        except ValueError:
            pass  # Damaged: said again, and written again.
    told = list(itertools.product(range(len(WORDS)), VOICES[part], SPEEDS, PITCHES))
    with concurrent.futures.ThreadPoolExecutor() as threads:
        said = threads.map(lambda one: say_word(program, WORDS[one[0]], *one[1:]), told)
        frames = np.stack([log_mel(samples) for samples in said])[..., None]
    labels = np.array([one[0] for one in told], np.int32)
    if path is not None:
        _keep(path, frames, labels)
    return frames, labels


def say_word(program: str, word: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """The samples of a word, floats in [-1, 1] at `RATE`.

    Raises:
      ValueError: if espeak-ng fails, or gives no sound.
    """
    words = [program, "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    try:
        done = subprocess.run(words, capture_output=True, timeout=SECONDS)
        # A stream's length is not known to its header, so all that follows it is sound.
        with wave.open(io.BytesIO(done.stdout)) as sound:
            form = sound.getnchannels(), sound.getsampwidth(), sound.getframerate()
            content = sound.readframes(len(done.stdout))
    except (OSError, EOFError, wave.Error, subprocess.TimeoutExpired) as error:
        reason = str(error)[:200] or type(error).__name__
        raise ValueError(
            f"data 'spoken': {PROGRAM} did not say {word!r} as {voice} ({reason}); install it anew."
        ) from None
    samples = np.frombuffer(content[: len(content) // 2 * 2], "<i2").astype(np.float64) / 2**15
    if form != (1, 2, RATE) or not np.any(samples):
        raise ValueError(
            f"data 'spoken': {PROGRAM} gave no sound of {RATE} samples a second for {word!r} as "
            f"{voice} {form}; install version 1.50 or later, with its voices."
        )
    return samples


def log_mel(samples: np.ndarray) -> np.ndarray:
    """The frames of a word, `[FRAMES, MELS]` float32 in [0, 1].

        frame[t, m] = 1 + max(-1, 10 log10(p[t, m] / max p) / RANGE),  p = |FFT(window x)|^2 @ mel

    A Hann window of 46 ms every 20 ms; the mel filters are those of `mel_filters`. What is
    quieter than a hundredth of the loudest sample before and after the word is left out; what is
    shorter than all frames is followed by silence, 0, what is longer is cut.
    """
    loud = np.flatnonzero(np.abs(samples) >= np.abs(samples).max() / 100)
    word = samples[loud[0] : loud[-1] + 1][: (FRAMES - 1) * HOP + WINDOW]
    word = np.pad(word, (0, max(0, WINDOW - len(word))))
    frames = np.lib.stride_tricks.sliding_window_view(word, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))) ** 2 @ mel_filters()
    decibels = 10 * np.log10(np.maximum(power, 1e-12) / max(power.max(), 1e-12))
    seen = np.zeros((FRAMES, MELS), np.float32)
    seen[: len(frames)] = np.maximum(1 + decibels / RANGE, 0.0)
    return seen


def mel_filters(low: float = 60.0, high: float = 8000.0) -> np.ndarray:
    """Triangles `[frequency, mel]` of height 1, their corners evenly spaced in mel.

    mel(f) = 2595 log10(1 + f / 700),  f in Hz
    """
    mel = lambda f: 2595 * np.log10(1 + f / 700)
    corners = 700 * (10 ** (np.linspace(mel(low), mel(high), MELS + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)[:, None]
    rise = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    fall = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    return np.maximum(0.0, np.minimum(rise, fall))


def _program() -> str:
    found = shutil.which(PROGRAM)
    if found is None:
        raise ImportError(
            f"data 'spoken' is said by the program {PROGRAM}, which is not installed: "
            f"apt install {PROGRAM}, or brew install {PROGRAM}.",
            name=PROGRAM,
        )
    return found


def _cache_file(program: str, part: str) -> Path | None:
    """Where what this version of espeak-ng says is kept; None where nothing can be."""
    try:
        version = subprocess.run([program, "--version"], capture_output=True, timeout=SECONDS)
        told = repr((version.stdout, WORDS, VOICES[part], SPEEDS, PITCHES, FRAMES, MELS, HOP))
        name = f"{part}-{hashlib.sha256(told.encode()).hexdigest()[:16]}.npz"
        return cache_folder() / "spoken" / name
    except (OSError, RuntimeError, subprocess.TimeoutExpired):  # RuntimeError: no home folder.
        return None


def _keep(path: Path, frames: np.ndarray, labels: np.ndarray) -> None:
    """A cache that cannot be written costs the seconds of saying it all again."""
    content = io.BytesIO()
    np.savez(content, frames=frames, labels=labels)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
    except OSError:
        pass
