"""What the pages say, in Korean and English; English is the key."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

Translate: TypeAlias = Callable[[str], str]
"""Returns a text in the reader's language."""

_KOREAN = {
    "": "",
    "95% interval": "95% 구간",
    "A/B": "A/B",
    "ABANDONED": "포기됨 (ABANDONED)",
    "ACTIVE": "진행 중 (ACTIVE)",
    "Abandon": "포기",
    "Act": "조치",
    "Agent": "에이전트",
    "Agents": "에이전트",
    "All of it, as JSON": "전체를 JSON으로 보기",
    "COMPLETED": "완료됨 (COMPLETED)",
    "Choose an agent to see its variants.": "에이전트를 고르면 변형이 나옵니다.",
    "Costs": "비용",
    "Created before": "이전에 생성",
    "Created since": "이후에 생성",
    "Days": "일수",
    "End it for good, whoever owns it.": "누가 실행 중이든 완전히 끝냅니다.",
    "Errors": "오류",
    "FAILED": "실패 (FAILED)",
    "Failures": "실패",
    "How far runs get": "어디까지 진행되는가",
    "How sessions ended, by day (UTC)": "세션이 어떻게 끝났는가, 일별 (UTC)",
    "Input": "입력",
    "Its variants": "변형",
    "LOST: its worker died or lost the session, nobody knows when.": (
        "LOST: 워커가 죽었거나 세션을 잃었으며, 언제인지는 알 수 없습니다."
    ),
    "Let the next worker take it at once, backoff or not.": (
        "대기 시간과 상관없이 다음 워커가 바로 이어받게 합니다."
    ),
    "Metadata": "메타데이터",
    "Metric": "지표",
    "More": "더 보기",
    "Most failing": "가장 많이 실패함",
    "No agent has begun.": "시작한 에이전트가 없습니다.",
    "No agent ran for": "에이전트가 실행되지 않은 시간:",
    "No failures.": "실패가 없습니다.",
    "No projects.": "프로젝트가 없습니다.",
    "No sessions.": "세션이 없습니다.",
    "No variant of it was recorded there.": "이 기간에 기록된 변형이 없습니다.",
    "No worker is registered.": "등록된 워커가 없습니다.",
    "None is kept.": "보관된 것이 없습니다.",
    "None.": "없음.",
    "Nothing ran there.": "이 기간에 실행된 것이 없습니다.",
    "One by one": "하나씩 보기",
    "One variant against another": "변형 비교",
    "Only the newest are shown": "가장 최근 것만 표시",
    "Output": "출력",
    "Pages": "페이지",
    "Projects": "프로젝트",
    "Reason": "이유",
    "Release": "놓아주기",
    "Report": "보고서",
    "Seconds of": "초 단위 실행 시간:",
    "Sessions": "세션",
    "Sessions by day (UTC)": "일별 세션 (UTC)",
    "Sessions by hour of the day (UTC)": "시간대별 세션 (UTC)",
    "Sessions by pipeline type": "파이프라인 종류별 세션",
    "Sessions that are open": "끝나지 않은 세션",
    "Show": "보기",
    "Since": "언제부터",
    "Skip to the content": "본문으로 건너뛰기",
    "Slowest (p95)": "가장 느림 (p95)",
    "Technologies": "기술",
    "The numbers": "수치 보기",
    "The second against the first": "첫째와 비교한 둘째",
    "This is its begin.": "앞부분만 표시합니다.",
    "Token": "토큰",
    "Tracebacks of failed attempts": "실패한 시도의 트레이스백",
    "Usage": "사용량",
    "User": "사용자",
    "Variant": "변형",
    "Weights": "가중치",
    "Which": "대상",
    "Workers": "워커",
    "abandoned": "포기",
    "against": "비교 대상",
    "age": "나이",
    "agent": "에이전트",
    "ago": "전",
    "all": "전체",
    "at": "위치",
    "attempt": "시도",
    "attempts": "시도",
    "began": "시작",
    "budget": "예산",
    "changed": "변경",
    "completed": "완료",
    "cost": "비용",
    "cost $": "비용 $",
    "count": "개수",
    "created": "생성",
    "day": "일",
    "died": "사망:",
    "done": "진행",
    "dotted": "점선",
    "downloads": "다운로드",
    "due": "예정",
    "effect": "효과",
    "failed": "실패",
    "failed %": "실패 %",
    "first": "처음",
    "from a live owner, too": "살아 있는 워커에게서도",
    "hour": "시",
    "its agent's time is over": "에이전트 제한 시간",
    "last": "마지막",
    "last accessed": "마지막 접근",
    "last failure": "마지막 실패",
    "last session": "마지막 세션",
    "lasted": "소요",
    "lease ends": "임대 종료",
    "made": "작성",
    "made of": "구성",
    "mean": "평균",
    "mean s": "평균 초",
    "measure": "척도",
    "message": "메시지",
    "model": "모델",
    "name": "이름",
    "of them due": "그중 지금 재개 가능",
    "ok %": "성공 %",
    "only what is FAILED now": "지금 FAILED인 것만",
    "open": "끝나지 않음",
    "over time": "시간에 따른 변화",
    "project": "프로젝트",
    "projects": "프로젝트",
    "recovered": "복구됨",
    "release": "릴리스",
    "resumed": "재개",
    "resumes": "재개 횟수",
    "retries": "재시도",
    "runs": "실행",
    "samples needed, each": "필요한 표본 수 (각각)",
    "seconds of a session: p50": "세션 시간(초): p50",
    "session": "세션",
    "sessions": "세션",
    "size MB": "크기 MB",
    "started": "시작",
    "state": "상태",
    "status": "상태",
    "stopped here": "여기서 멈춤",
    "success of those that ended": "끝난 것 중 성공",
    "success, points": "성공률, 포인트",
    "tokens": "토큰",
    "tokens in": "입력 토큰",
    "tokens out": "출력 토큰",
    "took s": "걸린 초",
    "trend %": "추세 %",
    "type": "종류",
    "typical": "대표값",
    "typical value, %": "대표값, %",
    "up": "가동",
    "user": "사용자",
    "variant": "변형",
    "wait to be resumed, now": "지금 재개를 기다림",
    "when": "언제",
    "worker": "워커",
    "yes": "예",
}


# A variant's name, which may hold anything but the end of a sentence.
_A = r"((?:(?!\. ).)+?)"
_BEGIN = r"(?:(?<=\. )|^)"
# The sentences of a comparison's verdict, and parts of them.
_SENTENCES = {
    r"Not enough data: (\d+) samples of (.+) and (\d+) of (.+); a comparison takes at least "
    r"(\d+) of each\.": (
        r"데이터가 부족합니다: \2 표본 \1개, \4 표본 \3개. "
        r"비교하려면 각각 \5개 이상이어야 합니다."
    ),
    r"Not to be trusted: (\d+) samples of (.+) and (\d+) of (.+) are not split as intended, "
    r"so samples of one of them must be missing\.": (
        r"믿을 수 없습니다: \2 표본 \1개와 \4 표본 \3개는 "
        r"의도한 비율이 아니므로 한쪽 표본이 빠져 있습니다."
    ),
    rf"{_BEGIN}{_A} succeeds more often than {_A}: by ([\d.]+) points": (
        r"\1의 성공률이 \2보다 \3포인트 높습니다"
    ),
    rf"{_BEGIN}{_A} succeeds less often than {_A}: by ([\d.]+) points": (
        r"\1의 성공률이 \2보다 \3포인트 낮습니다"
    ),
    rf"{_BEGIN}{_A} takes ([\d.]+) % less than {_A}(?= \()": r"\1의 값이 \3보다 \2 % 작습니다",
    rf"{_BEGIN}{_A} takes ([\d.]+) % more than {_A}(?= \()": r"\1의 값이 \3보다 \2 % 큽니다",
    r"\((\S+) to (\S+)( %)?\)\.": r"(\1 ~ \2\3).",
    r"Success rates show no difference\.": "성공률에는 차이가 없습니다.",
    r"Values show no difference\.": "값에는 차이가 없습니다.",
    r"Not enough data to tell an effect of that size in (.+)\.": (
        r"이 크기의 효과를 알기에는 데이터가 부족합니다: \1."
    ),
    r"success \((\d+) each\)": r"성공률 (각각 \1개)",
    r"values \((\d+) each\)": r"값 (각각 \1개)",
    r"values \((\d+) each above 0, at least\)": r"값 (0보다 큰 것이 각각 \1개 이상)",
    r"\) and 값": "), 값",
}


def language(accepted: str) -> str:
    """Return `ko` or `en`, whichever an Accept-Language header would rather have."""
    wishes = []
    for place, wish in enumerate(accepted.split(",")):
        tag, _, quality = "".join(wish.split()).lower().partition(";q=")
        try:
            weight = float(quality or 1)
        except ValueError:
            weight = 0.0
        name = tag.partition("-")[0]
        if name in ("ko", "en") and weight > 0:
            wishes.append((-weight, place, name))
    return min(wishes)[2] if wishes else "en"


def translate(chosen: str) -> Translate:
    """Return what gives each text in a language."""
    return _korean if chosen == "ko" else str


def _korean(text: str) -> str:
    translated = text
    for english, korean in _SENTENCES.items():
        # A variant's name may have lines.
        translated = re.sub(english, korean, translated, flags=re.DOTALL)
    return _KOREAN[text] if translated == text else translated
