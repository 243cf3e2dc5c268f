"""What is counted, in Prometheus' form. The names after `llm_serve_` are those that vLLM has after `vllm:`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llm_serve.engine.engine import Delta, Engine

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
STATUSES = (400, 401, 404, 408, 413, 429, 500, 503, 504)


class Metrics:
    """Of one server; a registry of its own, so that two in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.first = Histogram(
            "llm_serve_time_to_first_token_seconds", "From a request's coming to its first token",
            buckets=SECONDS, registry=here,
        )  # fmt: skip
        self.between = Histogram(
            "llm_serve_time_per_output_token_seconds",
            "From a token of an answer to its next",
            buckets=SECONDS,
            registry=here,
        )
        self.whole = Histogram(
            "llm_serve_e2e_request_latency_seconds", "From a request's coming to an answer's end",
            buckets=(*SECONDS, 300, 600), registry=here,
        )  # fmt: skip
        self.step = Histogram("llm_serve_step_seconds", "A step of the engine", buckets=SECONDS, registry=here)
        self.running = Gauge("llm_serve_num_requests_running", "Answers that are being written", registry=here)
        self.waiting = Gauge("llm_serve_num_requests_waiting", "Answers that wait for room", registry=here)
        self.cache = Gauge(
            "llm_serve_kv_cache_usage_perc", "Share of the cache's blocks that are held, 0 to 1", registry=here
        )
        self.prompts = Counter("llm_serve_prompt_tokens", "Tokens of prompts that were taken", registry=here)
        self.written = Counter("llm_serve_generation_tokens", "Tokens that were written", registry=here)
        self.preempted = Counter("llm_serve_num_preemptions", "Answers that lost their blocks", registry=here)
        self.ended = Counter(
            "llm_serve_request_success", "Answers by how they ended", ["finished_reason"], registry=here
        )
        self.refused = Counter(
            "llm_serve_request_refused", "Requests that were refused, or failed", ["status"], registry=here
        )
        for status in STATUSES:  # a counter that is not there at 0 has grown by nothing when it appears at 24
            self.refused.labels(status)

    def taken(self, prompt_tokens: int) -> None:
        """A request was taken."""
        self.prompts.inc(prompt_tokens)

    def stepped(self, engine: Engine, seconds: float) -> None:
        """The engine made a step."""
        self.step.observe(seconds)
        self.held(engine)
        if engine.log:
            self.preempted.inc(len(engine.log[-1].preempted))

    def held(self, engine: Engine) -> None:
        """What the engine holds now."""
        scheduler = engine.scheduler
        self.running.set(len(scheduler.running))
        self.waiting.set(len(scheduler.waiting))
        self.cache.set(scheduler.pool.used / scheduler.pool.num_blocks)

    def wrote(self, delta: Delta, begin: float, last: float | None, now: float) -> None:
        """A token was written, or an answer ended."""
        if delta.token is not None:
            self.written.inc()
            if last is None:
                self.first.observe(now - begin)
            else:
                self.between.observe(now - last)
        if delta.finish is not None:
            self.whole.observe(now - begin)
            self.ended.labels(delta.finish.value).inc()

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)
