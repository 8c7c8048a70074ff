/** Statuses that are counted apart (SAM-5 section 5.3.1); anything else counts as the last. */
const STATUSES = [0x00, 0x02, 0x04, 0x08, 0x18, 0x28, 0x30, 0x40, -1] as const;

const STATUS_NAMES: Readonly<Record<number, string>> = {
  0x00: 'good',
  0x02: 'check_condition',
  0x04: 'condition_met',
  0x08: 'busy',
  0x18: 'reservation_conflict',
  0x28: 'task_set_full',
  0x30: 'aca_active',
  0x40: 'task_aborted',
};

/** Upper bounds of the latency buckets, ms. */
export const LATENCY_BOUNDS_MS: readonly number[] = [
  0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000,
];

/** What latencies are told apart by. */
export const KINDS = ['read', 'write', 'flush', 'unmap', 'other'] as const;
export type Kind = (typeof KINDS)[number];

const KIND_OF_OPCODE: Readonly<Record<number, Kind>> = {
  0x08: 'read',
  0x28: 'read',
  0xa8: 'read',
  0x88: 'read',
  0x0a: 'write',
  0x2a: 'write',
  0xaa: 'write',
  0x8a: 'write',
  0x2e: 'write',
  0xae: 'write',
  0x8e: 'write',
  0x41: 'write',
  0x93: 'write',
  0x89: 'write',
  0x8b: 'write',
  0x35: 'flush',
  0x91: 'flush',
  0x42: 'unmap',
};

/** Latencies of one kind of command. */
export interface LatencyHistogram {
  readonly kind: Kind;
  /** Commands per bucket of LATENCY_BOUNDS_MS, not cumulated; the last one is for all that took longer. */
  readonly counts: Float64Array;
  sumMs: number;
}

/** Latencies by kind. p99 is the upper bound of its bucket; null: above all bounds. */
export type Latencies = Readonly<
  Record<Kind, { readonly count: number; readonly meanMs: number; readonly p99Ms: number | null }>
>;

/** Totals since the unit was made. */
export interface StatisticsSummary {
  readonly commands: number;
  /** Of them those with another status than GOOD. */
  readonly errors: number;
  readonly bytesRead: number;
  readonly bytesWritten: number;
  readonly latencies: Latencies;
}

export interface CommandCount {
  readonly opcode: number;
  readonly status: string;
  readonly count: number;
}

/** The bound of the bucket that a quantile falls into, ms; 0 without commands. */
function quantile(counts: Float64Array, total: number, part: number): number | null {
  let left = total * part;
  for (let i = 0; i < counts.length; i++) {
    left -= counts[i] as number;
    if (left <= 0) return total === 0 ? 0 : (LATENCY_BOUNDS_MS[i] ?? null);
  }
  return null;
}

/** Counts the commands of one logical unit. What is called per command allocates nothing and looks nothing up by name. */
export class CommandStatistics {
  /** Bytes sent to initiators. */
  bytesRead = 0;
  /** Bytes that initiators sent. */
  bytesWritten = 0;
  readonly latencies: readonly LatencyHistogram[] = KINDS.map((kind) => ({
    kind,
    counts: new Float64Array(LATENCY_BOUNDS_MS.length + 1),
    sumMs: 0,
  }));
  readonly #counts = new Float64Array(256 * STATUSES.length);
  readonly #byOpcode: LatencyHistogram[] = Array.from(
    { length: 256 },
    (_, opcode) => this.latencies[KINDS.indexOf(KIND_OF_OPCODE[opcode] ?? 'other')] as LatencyHistogram,
  );

  /** A command has completed: the device server's observer. */
  readonly observe = (opcode: number, status: number, bytesIn: number, bytesOut: number, latencyMs: number): void => {
    const i = STATUSES.indexOf(status as (typeof STATUSES)[number]);
    const at = opcode * STATUSES.length + (i < 0 ? STATUSES.length - 1 : i);
    this.#counts[at] = (this.#counts[at] as number) + 1;
    this.bytesRead += bytesIn;
    this.bytesWritten += bytesOut;
    const histogram = this.#byOpcode[opcode] as LatencyHistogram;
    let bucket = 0;
    while (bucket < LATENCY_BOUNDS_MS.length && latencyMs > (LATENCY_BOUNDS_MS[bucket] as number)) bucket++;
    histogram.counts[bucket] = (histogram.counts[bucket] as number) + 1;
    histogram.sumMs += latencyMs;
  };

  /** What there is to say about it in short. */
  summary(): StatisticsSummary {
    let commands = 0;
    let errors = 0;
    this.#counts.forEach((count, at) => {
      commands += count;
      if (at % STATUSES.length !== 0) errors += count;
    });
    const latencies = this.latencies.map(({ kind, counts, sumMs }) => {
      const count = counts.reduce((sum, each) => sum + each, 0);
      return [kind, { count, meanMs: count === 0 ? 0 : sumMs / count, p99Ms: quantile(counts, count, 0.99) }] as const;
    });
    const { bytesRead, bytesWritten } = this;
    return { commands, errors, bytesRead, bytesWritten, latencies: Object.fromEntries(latencies) as Latencies };
  }

  /** Commands by opcode and status; those that never came are left out. */
  counts(): CommandCount[] {
    const found: CommandCount[] = [];
    this.#counts.forEach((count, at) => {
      if (count === 0) return;
      const status = STATUSES[at % STATUSES.length] as number;
      found.push({ opcode: Math.floor(at / STATUSES.length), status: STATUS_NAMES[status] ?? 'other', count });
    });
    return found;
  }
}
