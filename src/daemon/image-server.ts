import { realpathSync } from 'node:fs';
import { hostname } from 'node:os';
import path from 'node:path';
import { LunetteError } from '../../formats/core/errors.ts';
import type { Image } from '../../formats/image/image.ts';
import type { ImageHost } from '../../formats/index.ts';
import { nativeCrc32c } from '../io/native.ts';
import type { ChapCredentials } from '../iscsi/chap.ts';
import { formatAddress } from '../iscsi/names.ts';
import { Portal } from '../iscsi/portal.ts';
import { IscsiTarget } from '../iscsi/target.ts';
import { createHost, type HostOptions } from '../open/host.ts';
import { ScsiDevice } from '../scsi/device.ts';
import type { UnitIdentity } from '../scsi/identity.ts';
import { type Address, addressError, connectHost } from './address.ts';
import { closeInOrder, closeTogether } from './close-in-order.ts';
import { CommandStatistics } from './command-statistics.ts';
import { type LogFields, type ServerLog, SILENT } from './log.ts';
import type { MeasuredUnit } from './metrics.ts';
import type { MetricsEndpoint } from './metrics-endpoint.ts';
import { nameOfFile, targetName, uniqueName } from './names.ts';
import { checkRequest, type ExportRequest, type OpenedExport, openExport } from './open-export.ts';
import { reservationStore } from './reservation-store.ts';

export interface ImageServerOptions extends Omit<HostOptions, 'warn'> {
  readonly exports: readonly ExportRequest[];
  /** Where the iSCSI portal listens. Port 0 picks a free one. */
  readonly listen: Address;
  /** Name of the target: a whole iSCSI name, or what stands behind our prefix. Default: from the file's name. One target only. */
  readonly name?: string | undefined;
  /** The images are LUN 0, 1, 2… of one target, instead of LUN 0 of one each. */
  readonly oneTarget?: boolean | undefined;
  /** What initiators must prove; absent: nothing. */
  readonly chap?: ChapCredentials | undefined;
  /** What we prove to initiators that ask. */
  readonly mutualChap?: ChapCredentials | undefined;
  /** Names of initiators that may log in; absent: anybody. */
  readonly allowedInitiators?: readonly string[] | undefined;
  /** Size of a logical block, bytes. Default 512. */
  readonly blockSize?: 512 | 4096 | undefined;
  readonly removable?: boolean | undefined;
  /** The units are CD or DVD drives with the images as discs, which are only read. */
  readonly optical?: boolean | undefined;
  /** Directory for persistent reservations; made when the first one is kept. Absent: none are kept over restarts. */
  readonly stateDirectory?: string | undefined;
  /** Where Prometheus metrics are served over HTTP; absent: nothing is measured. */
  readonly metrics?: Address | undefined;
  readonly log?: ServerLog | undefined;
}

/** An image that is being served. */
export interface ServedImage {
  /** As it was asked for. */
  readonly request: ExportRequest;
  /** `iscsi://HOST:PORT/TARGET/LUN`, as libiscsi and QEMU take it. */
  readonly url: string;
  readonly target: string;
  readonly lun: number;
  /** Format of the file that was named. */
  readonly format: string;
  /** Bytes. */
  readonly size: number;
  readonly readOnly: boolean;
}

interface Unit extends MeasuredUnit {
  readonly request: ExportRequest;
  readonly opened: OpenedExport;
}

/** A target device with what is on it. */
interface Served {
  readonly target: IscsiTarget;
  readonly device: ScsiDevice;
  readonly units: readonly Unit[];
}

/**
 * Serves images over iSCSI: opens them, makes logical units and targets of them, listens.
 *
 *     const server = await ImageServer.start({ exports: [{ image: 'disk.qcow2' }], listen: { host: '127.0.0.1', port: 0 } });
 *     console.log(server.images[0].url);
 *     …
 *     await server.close();
 */
export class ImageServer {
  readonly images: readonly ServedImage[];
  readonly #host: ImageHost;
  readonly #served: readonly Served[];
  readonly #portal: Portal;
  readonly #metrics: MetricsEndpoint | undefined;
  #closing: Promise<void> | undefined;

  private constructor(
    host: ImageHost,
    served: readonly Served[],
    portal: Portal,
    metrics: MetricsEndpoint | undefined,
  ) {
    this.#host = host;
    this.#served = served;
    this.#portal = portal;
    this.#metrics = metrics;
    const { port } = portal.address;
    const authority = formatAddress(connectHost(portal.address.host), port);
    this.images = served.flatMap(({ units }) =>
      units.map(({ request, opened, target, lun }) => ({
        request,
        url: `iscsi://${authority}/${target}/${lun}`,
        target,
        lun,
        format: opened.format,
        size: opened.image.size,
        readOnly: opened.image.readOnly,
      })),
    );
  }

  /**
   * Opens the images and listens. When one image fails, none is served.
   *
   * @throws {LunetteError} what opening an image throws; INVALID for options that contradict each other; EXISTS when the port is taken
   */
  static async start(options: ImageServerOptions): Promise<ImageServer> {
    const log = options.log ?? SILENT;
    checkServerOptions(options);
    const host = createHost({
      ...options,
      warn: (message, image) => log.warn({ image }, `${image}: ${message}`),
    });
    const undo: (() => Promise<void>)[] = [() => host.close()];
    try {
      const served = await openAll(host, options, log);
      undo.push(() => closeDevices(served));
      const portal = new Portal({
        listen: options.listen,
        targets: served.map(({ target }) => target),
        ...(nativeCrc32c === undefined ? {} : { crc32c: nativeCrc32c }),
        log: portalLog(log),
      });
      await portal.listen().catch((error: unknown) => {
        const cause = error instanceof LunetteError ? (error.cause ?? error) : error;
        throw addressError(cause, options.listen, '--listen');
      });
      undo.push(() => portal.close({ graceMs: 0 }));
      const metrics = await startMetrics(options, host, portal, served);
      return new ImageServer(host, served, portal, metrics);
    } catch (error) {
      for (const step of undo.reverse()) await step().catch(() => undefined);
      throw error;
    }
  }

  /** Where the portal listens, with the port that was picked. */
  get address(): Address {
    return this.#portal.address;
  }

  /** Where metrics are served. */
  get metricsAddress(): Address | undefined {
    return this.#metrics?.address;
  }

  /** What initiators know the units by, in the order of `images`. */
  get identities(): readonly UnitIdentity[] {
    return this.#served.flatMap(({ device }) => device.units().map((unit) => unit.identity));
  }

  /** Sessions that are logged in now. */
  get sessions(): number {
    return this.#portal.counters.sessions;
  }

  /**
   * Stops accepting, asks initiators to log out, finishes what is in flight within `graceMs` (default 5000), then flushes and closes the
   * images. Safe to call twice.
   *
   * @throws {LunetteError} when an image could not be flushed or closed
   */
  close({ graceMs = 5000 }: { graceMs?: number } = {}): Promise<void> {
    this.#closing ??= this.#close(graceMs);
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #close(graceMs: number): Promise<void> {
    // The guard of a probed image has writes of its own to wait for; the host closes what is below.
    const images = this.#served.flatMap(({ units }) => units.map(({ opened }) => opened.image));
    return closeInOrder([
      () => this.#portal.close({ graceMs }),
      () => closeDevices(this.#served),
      () => closeTogether(images),
      () => this.#host.close(),
      () => this.#metrics?.close(),
    ]);
  }
}

/**
 * Checks what can be checked without touching an image.
 *
 * @throws {LunetteError} INVALID for options that contradict each other and names that cannot be
 */
export function checkServerOptions(options: ImageServerOptions): void {
  const { exports, oneTarget } = options;
  if (exports.length === 0) throw new LunetteError('INVALID', 'there is no image to serve');
  for (const request of exports) checkRequest(request);
  if (options.name !== undefined) targetName(options.name);
  if (options.name !== undefined && exports.length > 1 && oneTarget !== true) {
    throw new LunetteError('INVALID', 'one name is not enough for several targets', {
      help: 'Leave the name out, or put the images into one target: --one-target.',
    });
  }
}

async function openAll(host: ImageHost, options: ImageServerOptions, log: ServerLog): Promise<Served[]> {
  const { exports } = options;
  const taken = new Set<string>();
  const nameFor = (request: ExportRequest): string =>
    options.name === undefined
      ? targetName(uniqueName(request.name ?? nameOfFile(request.image), taken))
      : targetName(options.name);
  const groups =
    options.oneTarget === true
      ? [{ name: nameFor(exports[0] as ExportRequest), requests: exports }]
      : //
        exports.map((request) => ({ name: nameFor(request), requests: [request] }));

  const served: Served[] = [];
  for (const { name, requests } of groups) {
    const device = new ScsiDevice({ name, ports: [{ id: 1, name: `${name},t,0x0001` }] });
    const target = new IscsiTarget({
      name,
      alias: requests.length === 1 ? path.basename((requests[0] as ExportRequest).image).slice(0, 80) : undefined,
      device,
      chap: options.chap,
      mutualChap: options.mutualChap,
      allowedInitiators: options.allowedInitiators,
    });
    const units: Unit[] = [];
    for (const request of requests) units.push(await addUnit(host, device, name, units.length, request, options, log));
    served.push({ target, device, units });
  }
  return served;
}

async function addUnit(
  host: ImageHost,
  device: ScsiDevice,
  target: string,
  lun: number,
  request: ExportRequest,
  options: ImageServerOptions,
  log: ServerLog,
): Promise<Unit> {
  const optical = request.optical ?? options.optical ?? false;
  const units = request.blockSize ?? options.blockSize;
  const opened = await openExport(host, optical ? { ...request, readOnly: true } : request, log);
  const { image } = opened;
  const blockSize = optical ? 2048 : (units ?? 512);
  checkSize(image, request.image, blockSize, log);
  const identity = identityOf(target, lun, request);
  const statistics = new CommandStatistics();
  device.addUnit(lun, {
    image,
    identity,
    blockSize: units,
    removable: options.removable,
    optical,
    readOnly: request.readOnly,
    reservationStore:
      options.stateDirectory === undefined
        ? undefined
        : await reservationStore(options.stateDirectory, nameOfFile(request.image), identity),
    observer: options.metrics === undefined ? undefined : statistics.observe,
  });
  return { request, opened, target, lun, statistics };
}

function checkSize(image: Image, name: string, blockSize: number, log: ServerLog): void {
  if (image.size < blockSize) {
    throw new LunetteError('INVALID', `the disk has ${image.size} bytes, less than one block of ${blockSize}`, {
      path: name,
    });
  }
  const rest = image.size % blockSize;
  if (rest !== 0)
    log.warn({ image: name }, `${name}: its last ${rest} bytes are less than a block and not visible to initiators`);
}

/**
 * What a unit's serial number and designators are made from. The same after a restart; never the same for two disks: an initiator
 * that sees one designator twice takes it for two paths to one disk. So the machine's name is in it: target names of two machines
 * are often the same.
 */
function identityOf(target: string, lun: number, request: ExportRequest): string {
  const file = request.overlay ?? request.image;
  return [hostname(), realPath(file), request.snapshot ?? '', target, lun].join('\0');
}

function realPath(image: string): string {
  // The bridge's name of a format is no part of a path; a URL is the same from every directory.
  const [prefix = '', file = image] = /^(qemu:(?!json:)[a-z0-9-]+:)(.*)$/is.exec(image)?.slice(1) ?? [];
  if (prefix !== '') return prefix + realPath(file);
  if (/^(qemu|nbds?(\+\w+)?):/i.test(image)) return image;
  try {
    return realpathSync(file);
  } catch {
    return path.resolve(file);
  }
}

async function startMetrics(
  options: ImageServerOptions,
  host: ImageHost,
  portal: Portal,
  served: readonly Served[],
): Promise<MetricsEndpoint | undefined> {
  if (options.metrics === undefined) return undefined;
  // Loaded only when asked for: most exports are not measured, and it takes memory.
  const [{ Metrics }, { MetricsEndpoint }] = await Promise.all([
    import('./metrics.ts'),
    import('./metrics-endpoint.ts'),
  ]);
  const metrics = new Metrics({
    iscsi: {
      units: () => served.flatMap(({ units }) => units),
      sessions: () => new Map(served.map(({ target }) => [target.name, target.sessions.size])),
      counters: () => portal.counters,
    },
    cache: () => host.cache.stats,
  });
  return MetricsEndpoint.listen(options.metrics, metrics);
}

async function closeDevices(served: readonly Served[]): Promise<void> {
  await Promise.all(served.map(({ device }) => device.close()));
}

/** The portal's events with their fields in the text, so that a person sees them too. */
function portalLog(log: ServerLog): { info: typeof log.info; warn: typeof log.warn } {
  const text = (fields: LogFields, message: string): string => {
    const known = Object.entries(fields).filter(([, value]) => value !== undefined);
    return known.length === 0 ? message : `${message} (${known.map(([key, value]) => `${key} ${value}`).join(', ')})`;
  };
  return {
    info: (fields, message) => log.info(fields, text(fields, message)),
    warn: (fields, message) => log.warn(fields, text(fields, message)),
  };
}
