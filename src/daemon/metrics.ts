import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks';
import { Counter, Gauge, type Metric, Registry } from 'prom-client';
import type { BlockCacheStats } from '../../formats/index.ts';
import type { IscsiCounters } from '../iscsi/counters.ts';
import type { NbdCounters } from '../nbd/counters.ts';
import { type CommandStatistics, LATENCY_BOUNDS_MS } from './command-statistics.ts';

/** What is measured: asked when somebody reads the metrics, never in between. */
export interface MetricSources {
  readonly iscsi?: IscsiSources;
  readonly nbd?: () => NbdCounters;
  readonly tcmu?: () => readonly MeasuredDevice[];
  /** How many things are not served as they should be. */
  readonly problems?: () => number;
  readonly cache: () => BlockCacheStats;
}

/** What is measured of an iSCSI target. */
export interface IscsiSources {
  readonly units: () => readonly MeasuredUnit[];
  /** Sessions per target name. */
  readonly sessions: () => ReadonlyMap<string, number>;
  readonly counters: () => IscsiCounters;
}

export interface MeasuredUnit {
  readonly target: string;
  readonly lun: number;
  readonly statistics: CommandStatistics;
}

/** What is measured of a TCMU device, beside its commands. */
export interface MeasuredDevice {
  readonly device: string;
  readonly inFlight: number;
  /** What was odd about its command ring, by kind. */
  readonly ringEvents: Readonly<Record<string, number>>;
}

/** How fine the event loop's delay is sampled, ms. */
const LOOP_RESOLUTION_MS = 10;

/**
 * The process's metrics in Prometheus' terms. Counting happens elsewhere, in plain numbers; here they get names when they are read.
 */
export class Metrics {
  readonly #registry = new Registry();
  readonly #loopDelay: IntervalHistogram;

  constructor(sources: MetricSources) {
    this.#loopDelay = monitorEventLoopDelay({ resolution: LOOP_RESOLUTION_MS });
    this.#loopDelay.enable();
    if (sources.iscsi !== undefined) {
      this.#addCommands(sources.iscsi);
      this.#addSessions(sources.iscsi);
    }
    if (sources.nbd !== undefined) this.#addNbd(sources.nbd);
    if (sources.tcmu !== undefined) this.#addTcmu(sources.tcmu);
    if (sources.problems !== undefined) {
      const { problems } = sources;
      this.#gauge('lunette_problems', 'Devices and exports that are not served as they should be', [], (set) =>
        set({}, problems()),
      );
    }
    this.#addCache(sources);
    this.#addProcess();
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  /** All metrics in Prometheus' text format. */
  text(): Promise<string> {
    return this.#registry.metrics();
  }

  close(): void {
    this.#loopDelay.disable();
    this.#registry.clear();
  }

  #addCommands(sources: IscsiSources): void {
    const each = (visit: (unit: MeasuredUnit, labels: { target: string; lun: string }) => void): void => {
      for (const unit of sources.units()) visit(unit, { target: unit.target, lun: String(unit.lun) });
    };
    this.#counter(
      'lunette_scsi_commands_total',
      'SCSI commands completed',
      ['target', 'lun', 'opcode', 'status'],
      (add) =>
        each(({ statistics }, labels) => {
          for (const { opcode, status, count } of statistics.counts()) {
            add({ ...labels, opcode: `0x${opcode.toString(16).padStart(2, '0')}`, status }, count);
          }
        }),
    );
    this.#counter('lunette_scsi_bytes_total', 'Bytes moved by SCSI commands', ['target', 'lun', 'direction'], (add) =>
      each(({ statistics }, labels) => {
        add({ ...labels, direction: 'read' }, statistics.bytesRead);
        add({ ...labels, direction: 'write' }, statistics.bytesWritten);
      }),
    );
    this.#registry.registerMetric(
      latencyMetric((visit) => {
        each(({ statistics }, labels) => {
          for (const { kind, counts, sumMs } of statistics.latencies) visit({ ...labels, kind }, counts, sumMs);
        });
      }),
    );
  }

  #addSessions({ sessions, counters: iscsi }: IscsiSources): void {
    this.#gauge('lunette_iscsi_sessions', 'iSCSI sessions', ['target'], (set) => {
      for (const [target, count] of sessions()) set({ target }, count);
    });
    this.#gauge('lunette_iscsi_connections', 'TCP connections open now', [], (set) => set({}, iscsi().openConnections));
    this.#counter('lunette_iscsi_logins_total', 'Logins by outcome', ['result'], (add) => {
      const { loginsSucceeded, loginsFailed, authenticationFailures, loginTimeouts } = iscsi();
      add({ result: 'success' }, loginsSucceeded);
      add({ result: 'authentication_failure' }, authenticationFailures);
      add({ result: 'timeout' }, loginTimeouts);
      add({ result: 'failure' }, Math.max(0, loginsFailed - authenticationFailures));
    });
    this.#counter('lunette_iscsi_bytes_total', 'Bytes on the wire', ['direction'], (add) => {
      add({ direction: 'in' }, iscsi().bytesIn);
      add({ direction: 'out' }, iscsi().bytesOut);
    });
    this.#counter('lunette_iscsi_errors_total', 'What went wrong with peers', ['kind'], (add) => {
      const counters = iscsi();
      add({ kind: 'refused_connection' }, counters.refusedConnections);
      add({ kind: 'header_digest' }, counters.headerDigestErrors);
      add({ kind: 'data_digest' }, counters.dataDigestErrors);
      add({ kind: 'reject' }, counters.rejects);
      add({ kind: 'protocol' }, counters.protocolErrors);
      add({ kind: 'task_set_full' }, counters.taskSetFull);
      add({ kind: 'dead_peer' }, counters.deadPeers);
    });
  }

  #addNbd(read: () => NbdCounters): void {
    this.#gauge('lunette_nbd_connections', 'NBD connections open now', ['state'], (set) => {
      const { openConnections, clients } = read();
      set({ state: 'transmission' }, clients);
      set({ state: 'handshake' }, openConnections - clients);
    });
    this.#counter('lunette_nbd_requests_total', 'NBD requests by outcome', ['result'], (add) => {
      const { requests, requestErrors } = read();
      add({ result: 'success' }, requests - requestErrors);
      add({ result: 'error' }, requestErrors);
    });
    this.#counter('lunette_nbd_bytes_total', 'Bytes on the wire', ['direction'], (add) => {
      add({ direction: 'in' }, read().bytesIn);
      add({ direction: 'out' }, read().bytesOut);
    });
    this.#counter('lunette_nbd_errors_total', 'What went wrong with clients', ['kind'], (add) => {
      const { refusedConnections, timeouts, tlsFailures, protocolErrors, optionErrors } = read();
      add({ kind: 'refused_connection' }, refusedConnections);
      add({ kind: 'timeout' }, timeouts);
      add({ kind: 'tls' }, tlsFailures);
      add({ kind: 'protocol' }, protocolErrors);
      add({ kind: 'option' }, optionErrors);
    });
  }

  #addTcmu(devices: () => readonly MeasuredDevice[]): void {
    this.#gauge('lunette_tcmu_devices', 'TCMU devices that are served', [], (set) => set({}, devices().length));
    this.#gauge('lunette_tcmu_in_flight', 'Commands under way', ['device'], (set) => {
      for (const { device, inFlight } of devices()) set({ device }, inFlight);
    });
    this.#counter('lunette_tcmu_ring_events_total', 'What was odd about a ring', ['device', 'kind'], (add) => {
      for (const { device, ringEvents } of devices()) {
        for (const [kind, count] of Object.entries(ringEvents)) add({ device, kind }, count);
      }
    });
  }

  #addCache({ cache }: MetricSources): void {
    this.#counter('lunette_cache_lookups_total', 'Lookups in the block cache', ['result'], (add) => {
      const { hits, misses, coldHits } = cache();
      add({ result: 'hit' }, hits - coldHits);
      add({ result: 'cold_hit' }, coldHits);
      add({ result: 'miss' }, misses);
    });
    this.#counter('lunette_cache_evictions_total', 'Blocks dropped from the block cache', [], (add) => {
      add({}, cache().evictions);
    });
    this.#gauge('lunette_cache_bytes', 'Memory of the block cache', ['kind'], (set) => {
      const { warmBytes, coldBytes, pinnedBytes } = cache();
      set({ kind: 'warm' }, warmBytes);
      set({ kind: 'cold' }, coldBytes);
      set({ kind: 'pinned' }, pinnedBytes);
    });
  }

  #addProcess(): void {
    this.#gauge(
      'lunette_event_loop_delay_seconds',
      'Delay of the event loop since the last reading',
      ['quantile'],
      (set) => {
        const delay = this.#loopDelay;
        for (const quantile of [0.5, 0.99, 1]) {
          // Sampling waits for its own interval each time: that part is no delay.
          const nanoseconds = delay.count === 0 ? 0 : delay.percentile(quantile * 100) - LOOP_RESOLUTION_MS * 1e6;
          set({ quantile: String(quantile) }, Math.max(0, nanoseconds) / 1e9);
        }
        delay.reset();
      },
    );
    this.#gauge('process_resident_memory_bytes', 'Resident memory', [], (set) => set({}, process.memoryUsage.rss()));
    this.#counter('process_cpu_seconds_total', 'CPU time of this process', [], (add) => {
      const { user, system } = process.cpuUsage();
      add({}, (user + system) / 1e6);
    });
    this.#gauge('process_start_time_seconds', 'Start of this process, Unix time', [], (set) => {
      set({}, Math.round(Date.now() / 1000 - process.uptime()));
    });
  }

  #counter(name: string, help: string, labelNames: string[], read: (add: Report) => void): void {
    const counter = new Counter({
      name,
      help,
      labelNames,
      registers: [this.#registry],
      collect: () => {
        counter.reset();
        read((labels, value) => counter.inc(labels, value));
      },
    });
  }

  #gauge(name: string, help: string, labelNames: string[], read: (set: Report) => void): void {
    const gauge = new Gauge({
      name,
      help,
      labelNames,
      registers: [this.#registry],
      collect: () => {
        gauge.reset();
        read((labels, value) => gauge.set(labels, value));
      },
    });
  }
}

type Labels = Record<string, string>;
type Report = (labels: Labels, value: number) => void;

const LATENCY = 'lunette_scsi_latency_seconds';

/**
 * The latency histogram. prom-client's own keeps the counts itself, one lookup by labels per command; ours are counted where they
 * arise, and handed over in the form in which a registry asks any metric for its values.
 */
function latencyMetric(
  each: (visit: (labels: Labels, counts: Float64Array, sumMs: number) => void) => void,
): Metric<string> {
  const metric = {
    name: LATENCY,
    help: 'Time from a SCSI command’s arrival to its status',
    type: 'histogram',
    aggregator: 'sum',
    get() {
      const values: { metricName: string; labels: Record<string, string>; value: number }[] = [];
      each((labels, counts, sumMs) => {
        let below = 0;
        counts.forEach((count, i) => {
          below += count;
          const bound = LATENCY_BOUNDS_MS[i];
          const le = bound === undefined ? '+Inf' : String(bound / 1000);
          values.push({ metricName: `${LATENCY}_bucket`, labels: { ...labels, le }, value: below });
        });
        values.push({ metricName: `${LATENCY}_sum`, labels, value: sumMs / 1000 });
        values.push({ metricName: `${LATENCY}_count`, labels, value: below });
      });
      return { name: LATENCY, help: metric.help, type: metric.type, aggregator: metric.aggregator, values };
    },
    reset: () => undefined,
  };
  return metric as unknown as Metric<string>;
}
