import { LunetteError } from '../../formats/core/errors.ts';
import type { Image } from '../../formats/image/image.ts';
import {
  type BlockCacheStats,
  type ChainImage,
  createSnapshot,
  deleteSnapshot,
  type ImageHost,
} from '../../formats/index.ts';
import type { DaemonControl, Facts } from '../dbus/lunette-objects.ts';
import type { StatisticsSummary } from './command-statistics.ts';
import type { ConfiguredServers } from './configured-servers.ts';
import { describe } from './log.ts';
import type { TcmuService } from './tcmu-service.ts';

/** The parts of a daemon that are asked. */
export interface ControlledParts {
  readonly host: ImageHost;
  readonly service: TcmuService | undefined;
  readonly servers: ConfiguredServers | undefined;
}

/** A disk that is served, whichever way. */
interface ServedDisk {
  /** Names that it goes by. */
  readonly names: readonly string[];
  readonly transport: 'tcmu' | 'iscsi' | 'nbd';
  readonly url: string;
  readonly image: Image;
  readonly chain: ChainImage | undefined;
  readonly format: string;
  readonly statistics: StatisticsSummary | undefined;
  /** Tells the kernel of a new size, which then tells us. */
  readonly announce?: (size: number) => Promise<void>;
  /** Commands under way; of iSCSI and NBD who is connected. */
  readonly inFlight?: number;
  readonly sessions?: number;
}

/** A disk in `lunette status --json`. */
export interface ServedStatus extends Partial<StatisticsSummary> {
  readonly name: string;
  readonly transport: ServedDisk['transport'];
  /** What attaches it; of a TCMU device its configuration. */
  readonly url: string;
  readonly image: string;
  readonly format: string;
  /** Bytes. */
  readonly size: number;
  readonly readOnly: boolean;
  /** Of TCMU devices: commands under way. */
  readonly inFlight?: number;
  /** Of iSCSI and NBD: who is connected. */
  readonly sessions?: number;
}

/** What `lunette status --json` prints. */
export interface DaemonStatus {
  readonly pid: number;
  readonly uptimeSeconds: number;
  readonly served: readonly ServedStatus[];
  /** Devices and exports that are not served, with the reason. */
  readonly problems: readonly string[];
  readonly cache: BlockCacheStats;
}

/** Answers and does what the daemon is asked over D-Bus. */
export class Control implements DaemonControl {
  readonly #parts: () => ControlledParts;

  constructor(parts: () => ControlledParts) {
    this.#parts = parts;
  }

  status(): string {
    const { host } = this.#parts();
    const status: DaemonStatus = {
      pid: process.pid,
      uptimeSeconds: Math.round(process.uptime()),
      served: this.#disks().map((disk) => ({ ...factsOf(disk), ...disk.statistics })),
      problems: this.problems,
      cache: host.cache.stats,
    };
    return JSON.stringify(status);
  }

  /** What is not served as it should be, in words; none: the daemon is healthy. */
  get problems(): readonly string[] {
    const { service, servers } = this.#parts();
    return [
      ...(service?.problems ?? []),
      ...(servers?.failed ?? []).map(({ entry, reason }) => `${entry.name} (${entry.transport}): ${reason}`),
    ];
  }

  list(): readonly Facts[] {
    return this.#disks().map((disk) => ({ ...factsOf(disk) }));
  }

  statistics(name: string): Facts {
    const { latencies, ...totals } = this.#find(name).statistics ?? {};
    const facts: Record<string, number> = { ...totals };
    for (const [kind, { count, meanMs, p99Ms }] of Object.entries(latencies ?? {})) {
      facts[`${kind}Count`] = count;
      facts[`${kind}MeanMs`] = meanMs;
      if (p99Ms !== null) facts[`${kind}P99Ms`] = p99Ms;
    }
    return facts;
  }

  async flush(name: string): Promise<void> {
    await this.#find(name).image.flush();
  }

  async resize(name: string, size: number): Promise<void> {
    const { image, announce } = this.#find(name);
    const fail = (why: string, help?: string): never => {
      throw new LunetteError('INVALID', why, { path: image.path, help });
    };
    if (!Number.isSafeInteger(size) || size <= 0) fail(`${size} is no size`);
    if (size < image.size) fail(`the disk has ${image.size} bytes: it is not made smaller while it is in use`);
    if (size === image.size) return;
    await (announce?.(size) ?? image.resize(size));
  }

  async createSnapshot(name: string, snapshot: string): Promise<string> {
    const { id } = await createSnapshot(this.#chainOf(name), snapshot);
    return id;
  }

  async deleteSnapshot(name: string, snapshot: string): Promise<void> {
    await deleteSnapshot(this.#chainOf(name), snapshot);
  }

  async stop(name: string): Promise<void> {
    if ((await this.#parts().servers?.stop(name)) === true) return;
    const { image } = this.#find(name);
    throw new LunetteError('INVALID', `${name} is a backstore that targetcli made`, {
      path: image.path,
      help: `targetcli ends it: targetcli /backstores/user:… delete ${name}.`,
    });
  }

  describe(error: unknown): string {
    return describe(error);
  }

  #chainOf(name: string): ChainImage {
    const { chain, image } = this.#find(name);
    if (chain !== undefined) return chain;
    throw new LunetteError('UNSUPPORTED', 'what another program opens has no snapshots here', { path: image.path });
  }

  #find(name: string): ServedDisk {
    const found = this.#disks().filter(({ names }) => names.includes(name));
    if (found.length === 1) return found[0] as ServedDisk;
    if (found.length === 0) {
      const known = this.#disks().map(({ names }) => names[0]);
      throw new LunetteError('NOT_FOUND', `nothing of the name ${name} is served`, {
        help: known.length === 0 ? undefined : `Served are: ${known.join(', ')}.`,
      });
    }
    throw new LunetteError('INVALID', `${name} is the name of ${found.length}`, {
      help: `Say which: ${found.map(({ names }) => names[0]).join(', ')}.`,
    });
  }

  #disks(): ServedDisk[] {
    const { service, servers } = this.#parts();
    const devices = (service?.disks ?? []).map((disk): ServedDisk => {
      const { hba, name } = disk.backstore;
      return {
        names: [`user_${hba}/${name}`, name, `${hba}/${name}`],
        transport: 'tcmu',
        url: disk.config,
        image: disk.image,
        chain: disk.chain,
        format: disk.format,
        statistics: disk.statistics.summary(),
        inFlight: disk.inFlight,
        announce: (size) => disk.backstore.announce('dev_size', String(size)),
      };
    });
    const iscsi = (servers?.iscsi?.images ?? []).flatMap(({ target, url, request, format }) =>
      (servers?.iscsi?.unitsOf(target) ?? []).map(({ opened, statistics, sessions }): ServedDisk => {
        const { image, chain } = opened;
        const names = [request.name ?? target, target];
        return { names, transport: 'iscsi', url, image, chain, format, statistics: statistics.summary(), sessions };
      }),
    );
    const nbd = (servers?.nbd?.images ?? []).flatMap(({ name, url, format }): ServedDisk[] => {
      const found = servers?.nbd?.clientsOf(name);
      if (found === undefined) return [];
      const { image, chain } = found.opened;
      const own = { names: [name], url, image, chain, format };
      return [{ ...own, transport: 'nbd', statistics: undefined, sessions: found.clients }];
    });
    return [...devices, ...iscsi, ...nbd];
  }
}

function factsOf({ names, transport, url, image, format, inFlight, sessions }: ServedDisk) {
  return {
    name: names[0] ?? '',
    transport,
    url,
    image: image.path,
    format,
    size: image.size,
    readOnly: image.readOnly,
    ...(inFlight === undefined ? {} : { inFlight }),
    ...(sessions === undefined ? {} : { sessions }),
  };
}
