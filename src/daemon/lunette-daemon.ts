import type { ImageHost } from '../../formats/index.ts';
import type { BusService } from '../dbus/bus-service.ts';
import { newCounters as iscsiCounters } from '../iscsi/counters.ts';
import { newCounters as nbdCounters } from '../nbd/counters.ts';
import { createHost } from '../open/host.ts';
import { closeInOrder } from './close-in-order.ts';
import type { DaemonConfig } from './config.ts';
import { compareConfigs, describeChanges } from './config-changes.ts';
import { ConfiguredServers } from './configured-servers.ts';
import { Control } from './control.ts';
import { describe, type ServerLog } from './log.ts';
import { MetricsEndpoint } from './metrics-endpoint.ts';
import { claimStanding } from './standing.ts';
import { connectSystemBus } from './system-bus.ts';
import { TcmuService } from './tcmu-service.ts';

/**
 * All of the daemon: TCMU devices, exports of the configuration, what it says over D-Bus and HTTP. One host opens all images, so that one
 * budget bounds their cache, and one image can be served in several ways.
 */
export class LunetteDaemon {
  readonly #log: ServerLog;
  readonly #host: ImageHost;
  readonly #control: Control;
  #config: DaemonConfig;
  #bus: BusService | undefined;
  #service: TcmuService | undefined;
  #servers: ConfiguredServers | undefined;
  #metrics: MetricsEndpoint | undefined;

  private constructor(config: DaemonConfig, log: ServerLog) {
    this.#config = config;
    this.#log = log;
    this.#host = createHost({
      cacheBytes: config.cache,
      allow: config.allow,
      warn: (message, image) => log.warn({ image }, `${image}: ${message}`),
    });
    this.#control = new Control(() => ({ host: this.#host, service: this.#service, servers: this.#servers }));
  }

  /** Begins to serve. @throws {LunetteError} when TCMU devices cannot be served, or metrics not where they are to be */
  static async start(config: DaemonConfig, log: ServerLog): Promise<LunetteDaemon> {
    const daemon = new LunetteDaemon(config, log);
    try {
      await daemon.#begin();
      return daemon;
    } catch (error) {
      await daemon.close().catch(() => undefined);
      throw error;
    }
  }

  async #begin(): Promise<void> {
    const [config, log] = [this.#config, this.#log];
    // Before images are opened: when the address is taken nothing has happened yet.
    if (config.metrics !== undefined) this.#metrics = await this.#listenForMetrics(config.metrics);
    this.#bus = await connectSystemBus(log);
    await this.#serveDevices(config);
    this.#servers = await ConfiguredServers.start(config, this.#host, log);
    if (this.#bus !== undefined) await this.#publishControl(this.#bus);
  }

  /** Exports over the kernel need whoever serves their devices, for as long as there is any of them. */
  async #serveDevices(config: DaemonConfig): Promise<void> {
    const needed = config.tcmu.enable || config.export.some(({ transport }) => transport === 'lio');
    if (!needed || this.#service !== undefined) return;
    const unknownHandlers = config.tcmu['unknown-handlers'];
    const [host, log, bus] = [this.#host, this.#log, this.#bus];
    try {
      this.#service = await TcmuService.start({ host, log, bus, unknownHandlers });
      await claimStanding(log);
    } catch (error) {
      if (config.tcmu.enable) throw error;
      // The exports say so again, and those over the network are served all the same.
      log.error({ error }, `TCMU devices are not served: ${describe(error)}`);
    }
  }

  /** Of how much is served, for people. */
  get summary(): string {
    const exported = this.#servers?.served.length ?? 0;
    const devices = `${this.#service?.disks.length ?? 0} devices`;
    return exported === 0 ? devices : `${devices}, ${exported} exports`;
  }

  /** Where metrics are served. */
  get metricsAddress(): { readonly host: string; readonly port: number } | undefined {
    return this.#metrics?.address;
  }

  /** Follows another configuration: only what has changed is touched. */
  async reload(next: DaemonConfig): Promise<void> {
    const changes = compareConfigs(this.#config, next);
    const lines = describeChanges(changes);
    const what = lines.length === 0 ? 'has not changed' : 'has changed';
    this.#log.info({}, `SIGHUP: the configuration ${what}`);
    for (const line of lines) this.#log.info({}, line);
    await this.#serveDevices({ ...next, tcmu: this.#config.tcmu });
    await this.#servers?.apply(next, changes);
    this.#config = next;
  }

  /** Finishes what is in flight, flushes and closes the images. Safe to call twice. */
  close(): Promise<void> {
    // Targets of the kernel first: taking them down needs whoever serves their devices.
    return closeInOrder([
      async () => this.#servers?.close(),
      async () => this.#service?.close(),
      async () => this.#bus?.close(),
      () => this.#host.close(),
      async () => this.#metrics?.close(),
    ]);
  }

  async #publishControl(bus: BusService): Promise<void> {
    try {
      const { publishControl } = await import('../dbus/lunette-objects.ts');
      await publishControl(bus, this.#control);
    } catch (error) {
      this.#log.warn({ error }, `lunette status cannot ask us: ${describe(error)}`);
    }
  }

  async #listenForMetrics(where: { readonly host: string; readonly port: number }): Promise<MetricsEndpoint> {
    const { Metrics } = await import('./metrics.ts');
    const [noIscsi, noNbd] = [iscsiCounters(), nbdCounters()];
    const metrics = new Metrics({
      iscsi: {
        units: () => [...(this.#servers?.iscsi?.sources.units() ?? []), ...this.#tcmuUnits()],
        sessions: () => this.#servers?.iscsi?.sources.sessions() ?? new Map(),
        counters: () => this.#servers?.iscsi?.sources.counters() ?? noIscsi,
      },
      nbd: () => this.#servers?.nbd?.counters ?? noNbd,
      tcmu: () => (this.#service?.disks ?? []).map((disk) => ({ device: deviceOf(disk), ...disk.measures })),
      problems: () => this.#control.problems.length,
      cache: () => this.#host.cache.stats,
    });
    const endpoint = await MetricsEndpoint.listen(where, metrics, () => this.#control.problems);
    this.#log.info({}, `metrics at http://${endpoint.authority}/metrics, health at /health`);
    return endpoint;
  }

  /** With the device's name for a target: it has one unit. */
  #tcmuUnits() {
    return (this.#service?.disks ?? []).map((disk) => ({
      target: deviceOf(disk),
      lun: 0,
      statistics: disk.statistics,
    }));
  }
}

function deviceOf({ backstore: { hba, name } }: { readonly backstore: { hba: number; name: string } }): string {
  return `user_${hba}/${name}`;
}
