"""What is demanded of the rates of each setting."""

from experiments.verdict.simulate import Setting

FALSE, COVERED = 0.05, 0.95


def known_not_to_hold(s):
    """Few examples for their skewness."""
    return s.shape == "left" and s.examples < 500 or s.shape == "right" and s.examples < 300


def least_power(s):
    """At a gain of 5 standard errors, or None where nothing is promised."""
    if s.folds < 5 or s.runs > 0.35 or s.training or s.branch:
        return None
    if s.seeds == 1:
        return 0.90 if s.rows == 2 and s.examples >= 500 and s.shape == "normal" else None
    if s.seeds == 2:
        return {14: 0.85, 40: 0.70}.get(s.rows) if s.examples >= 500 else None
    return 0.90 if s.examples >= (500 if s.shape == "left" else 300) else None


def demands(part, row):
    """`(what, rate, lowest, highest)` for all that is demanded of one setting."""
    s, rate = Setting(**row["setting"]), row["rates"]
    if part == "sets":
        return [("the best is in the set", rate["kept"], COVERED, 1)]
    if part == "test parts":
        return [("coverage", rate["covered, one"], COVERED, 1)]
    found = [("false claims", rate["false"], 0, FALSE)]
    found += [("coverage of all rows", rate["covered, all"], COVERED, 1)]
    for rule in ("lowest", "one standard error"):
        for shift in ("0", "3"):
            name = f"covered, {rule}, at {shift}"
            if name in rate:
                found.append((f"coverage of the {rule} row, gain {shift}", rate[name], COVERED, 1))
    if "false, folds alone" in rate:
        found.append(("false claims by folds alone", rate["false, folds alone"], 0, FALSE))
    least = least_power(s)
    if least and "helps at 5" in rate:
        found.append(("power at 5 standard errors", rate["helps at 5"], least, 1))
    if part in ("grid", "power") and s.rows == 2 and s.seeds >= 2:
        found.append(("coverage of a fixed pair", rate["covered, one"], 0.95, 0.98))
    return found


def judged(parts):
    """All demands that are not met by two standard errors, `known` where that is expected."""
    total, missed = 0, []
    for part, rows in parts.items():
        for row in rows:
            for what, rate, low, high in demands(part, row):
                total += 1
                slack = lambda bound, n=row["searches"]: 2 * (bound * (1 - bound) / n) ** 0.5
                if low - slack(low) <= rate <= high + slack(high):
                    continue
                known = part == "limits" or known_not_to_hold(Setting(**row["setting"]))
                told = {"part": part, "setting": row["name"], "what": what, "rate": rate}
                bound = low if rate < low else high
                missed.append(told | {"bound": bound, "n": row["searches"], "known": known})
    return total, missed
