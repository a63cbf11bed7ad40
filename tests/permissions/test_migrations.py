"""Migrations and `tdev rekey` in the roles that `tdev iam` prints for them."""
from __future__ import annotations

import pytest
from tests.migrations.runs import run
from fnmatch import fnmatchcase

def test_x(role, printed, capsys):
        e = f"mig-prod"
        more = ("--set", f"like=prod")
        role.may(printed("migrations", e, *more)); role.judged()
        losses = ("disable-protection", "disable-pitr", "change-key", "silence-alarms", "end-on-demand")
        allow = [f"--allow={kind}:user-projects" for kind in losses]
        acts=set()
        for argv in (("apply", e, *more), ("status", e, *more), ("apply", e, "--set", "like=dev", "--table=user-projects", *allow), ("apply", e, *more, *allow)):
            code = run(*argv)
            out = capsys.readouterr()
            j=role.judged()
            acts|={o.action for o in j}
            with capsys.disabled():
              print("#####", argv, code, out.out[-600:], out.err[-600:])
              print(sorted({(one.verdict, one.action, one.resource if one.verdict=="denied" else "") for one in j}))
        for i, action in enumerate(sorted(acts)):
            e=f"mig{i}"
            pol=printed("migrations", e, *more)
            role.may([{**s, "Action":[a for a in s["Action"] if a!=action] or "x:y"} for s in pol])
            code=run("apply", e, *more)
            out = capsys.readouterr()
            den={tuple(o) for o in role.judged() if o.verdict=="denied"}
            role.may(pol)
            code2=run("apply", e, *more); code3=run("status", e, *more)
            o2=capsys.readouterr()
            with capsys.disabled():
                print("---", action, code, code2, code3, den, out.err[-300:], "" if code2==0 else o2.err[-300:])
