/** When to come back: full jitter over a bound that doubles. */
export class Backoff {
  #attempts = 0;

  constructor(
    private readonly minMs: number,
    private readonly maxMs: number,
    private readonly random: () => number,
  ) {}

  /** Milliseconds until the next attempt. */
  next(): number {
    const bound = Math.min(this.maxMs, this.minMs * 2 ** this.#attempts++);
    return this.random() * bound;
  }

  /** A session was had. */
  reset(): void {
    this.#attempts = 0;
  }
}
