import path from 'node:path';
import { LunetteError } from '../../formats/core/errors.ts';
import type { ImageHost } from '../../formats/index.ts';
import type { NbdCounters } from '../nbd/counters.ts';
import { MAX_STRING } from '../nbd/protocol.ts';
import { NbdServer } from '../nbd/server.ts';
import { readTls, type TlsFiles } from '../nbd/tls.ts';
import { formatNbdUri, type NbdAddress } from '../nbd/uri.ts';
import { createHost, type HostOptions } from '../open/host.ts';
import { type Address, addressError, connectHost } from './address.ts';
import { closeInOrder } from './close-in-order.ts';
import { type LogFields, type ServerLog, SILENT } from './log.ts';
import type { MetricsEndpoint } from './metrics-endpoint.ts';
import { nameOfFile, uniqueName } from './names.ts';
import { type NamedExport, NbdExports } from './nbd-exports.ts';
import { checkRequest, type ExportRequest, type OpenedExport, openExport } from './open-export.ts';

export interface NbdImageServerOptions extends Omit<HostOptions, 'warn'> {
  /** Opens the images, beside those of others in this process; it stays the caller's. Default: one of its own. */
  readonly host?: ImageHost | undefined;
  /** What is served from the beginning: add() and remove() change it. */
  readonly exports: readonly ExportRequest[];
  /** A TCP address, port 0 picks a free one; or the path of a unix socket, made and at the end removed. */
  readonly listen: NbdAddress;
  /** Name of the export. Default: from the file's name. One image only. */
  readonly name?: string | undefined;
  /** Absent: no TLS. */
  readonly tls?: TlsFiles | undefined;
  /** Nobody is served without TLS. */
  readonly tlsRequired?: boolean | undefined;
  /** Where Prometheus metrics are served over HTTP; absent: nothing is measured. */
  readonly metrics?: Address | undefined;
  readonly log?: ServerLog | undefined;
}

/** An image that is being served over NBD. */
export interface ServedNbdImage {
  /** As it was asked for. */
  readonly request: ExportRequest;
  /** `nbd://HOST:PORT/NAME` or `nbd+unix:///NAME?socket=PATH`; nbds where TLS is required. */
  readonly url: string;
  readonly name: string;
  /** Format of the file that was named. */
  readonly format: string;
  /** Bytes. */
  readonly size: number;
  readonly readOnly: boolean;
}

/**
 * Serves images over NBD, all on one port or socket.
 *
 *     const server = await NbdImageServer.start({ exports: [{ image: 'disk.qcow2' }], listen: { host: '127.0.0.1', port: 0 } });
 *     console.log(server.images[0].url);
 *     …
 *     await server.close();
 */
export class NbdImageServer {
  /** Where it listens, with the port that was picked. */
  readonly address: NbdAddress;
  readonly #opener: Opener;
  readonly #exports: NbdExports;
  readonly #server: NbdServer;
  readonly #metrics: MetricsEndpoint | undefined;
  #closing: Promise<void> | undefined;

  private constructor(opener: Opener, exports: NbdExports, server: NbdServer, metrics: MetricsEndpoint | undefined) {
    this.#opener = opener;
    this.#exports = exports;
    this.#server = server;
    this.#metrics = metrics;
    const { listen } = opener.options;
    this.address = 'path' in listen ? { path: path.resolve(listen.path) } : server.address;
  }

  /** Names of snapshots that are served beside the images, when somebody last asked. */
  get snapshotNames(): readonly string[] {
    return this.#exports.snapshotNames;
  }

  /** What is served now. */
  get images(): readonly ServedNbdImage[] {
    return this.#exports.images.map((named) => this.#served(named));
  }

  #served({ name, request, opened }: NamedExport): ServedNbdImage {
    const { image, format } = opened;
    const reached: NbdAddress =
      'path' in this.address ? this.address : { host: connectHost(this.address.host), port: this.address.port };
    return {
      request,
      url: formatNbdUri(reached, name, this.#opener.options.tlsRequired === true),
      name,
      format,
      size: image.size,
      readOnly: image.readOnly || request.readOnly === true,
    };
  }

  /**
   * Opens the images and listens. When one image fails, none is served.
   *
   * @throws {LunetteError} what opening an image throws; INVALID for options that contradict each other; EXISTS when the port is taken
   */
  static async start(options: NbdImageServerOptions): Promise<NbdImageServer> {
    const log = options.log ?? SILENT;
    // A daemon begins with none.
    if (options.exports.length > 0) checkNbdOptions(options);
    const credentials = options.tls === undefined ? undefined : await readTls(options.tls);
    const warn = (message: string, image: string): void => log.warn({ image }, `${image}: ${message}`);
    const host = options.host ?? createHost({ ...options, warn });
    const opener: Opener = { host, options, log, taken: new Set() };
    const undo: (() => Promise<void>)[] = [async () => (options.host === undefined ? host.close() : undefined)];
    try {
      const exports = new NbdExports(host, log);
      undo.push(() => exports.close());
      for (const request of options.exports) await exports.add(await open(opener, request));
      const server = new NbdServer({
        listen: options.listen,
        catalog: exports,
        credentials,
        tlsRequired: options.tlsRequired,
        log: serverLog(log),
      });
      await server.listen().catch((error: unknown) => {
        throw listenError(error, options.listen);
      });
      undo.push(() => server.close({ graceMs: 0 }));
      const metrics = await startMetrics(options.metrics, host, server);
      return new NbdImageServer(opener, exports, server, metrics);
    } catch (error) {
      for (const step of undo.reverse()) await step().catch(() => undefined);
      throw error;
    }
  }

  /** Serves one image more. @throws {LunetteError} what opening it throws; CLOSED */
  async add(request: ExportRequest): Promise<ServedNbdImage> {
    if (this.#closing !== undefined) throw new LunetteError('CLOSED', 'the server is closed');
    checkRequest(request);
    const named = await open(this.#opener, request);
    try {
      await this.#exports.add(named);
    } catch (error) {
      this.#opener.taken.delete(named.name);
      throw error;
    }
    return this.#served(named);
  }

  /**
   * Serves an export, and snapshots of it, no longer: requests under way are answered within `graceMs` (default 5000), its clients are sent
   * away, the image is flushed and closed. Clients of others do not notice.
   */
  async remove(name: string, { graceMs = 5000 }: { graceMs?: number } = {}): Promise<void> {
    this.#opener.taken.delete(name);
    await this.#exports.remove(name, () =>
      this.#server.dismiss((found) => belongsTo(found.name, name), 'the export ends', graceMs),
    );
  }

  /** What is open under a name, and clients that use it or snapshots of it. */
  clientsOf(name: string): { readonly opened: OpenedExport; readonly clients: number } | undefined {
    const named = this.#exports.images.find((image) => image.name === name);
    if (named === undefined) return undefined;
    return { opened: named.opened, clients: this.#server.clientsOf((found) => belongsTo(found.name, name)) };
  }

  /** What is measured of it. */
  get counters(): NbdCounters {
    return this.#server.counters;
  }

  /** Where metrics are served. */
  get metricsAddress(): Address | undefined {
    return this.#metrics?.address;
  }

  /** Connections open now. */
  get connections(): number {
    return this.#server.connections;
  }

  /**
   * Stops accepting, answers what is under way within `graceMs` (default 5000), then flushes and closes the images. Safe to call twice.
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
    const { host, options } = this.#opener;
    return closeInOrder([
      () => this.#server.close({ graceMs }),
      () => this.#exports.close(),
      () => (options.host === undefined ? host.close() : undefined),
      () => this.#metrics?.close(),
    ]);
  }
}

/**
 * Checks what can be checked without touching an image.
 *
 * @throws {LunetteError} INVALID for options that contradict each other and names that cannot be
 */
export function checkNbdOptions(options: NbdImageServerOptions): void {
  const { exports, name } = options;
  if (exports.length === 0) throw new LunetteError('INVALID', 'there is no image to serve');
  for (const request of exports) checkRequest(request);
  if (options.tlsRequired === true && options.tls === undefined) {
    throw new LunetteError('INVALID', 'TLS that is required needs a certificate with its key, or a file of keys', {
      help: 'Add --tls-cert FILE --tls-key FILE, or --tls-psk-file FILE.',
    });
  }
  if (name === undefined) return;
  if (exports.length > 1) {
    throw new LunetteError('INVALID', 'one name is not enough for several exports', { help: 'Leave --name out.' });
  }
  if (name === '' || name.includes('\0') || Buffer.byteLength(name) > MAX_STRING) {
    throw new LunetteError('INVALID', `the name of an export has 1 to ${MAX_STRING} bytes, none of them zero`);
  }
}

/** What opening images takes. */
interface Opener {
  readonly host: ImageHost;
  readonly options: NbdImageServerOptions;
  readonly log: ServerLog;
  /** Names of exports. */
  readonly taken: Set<string>;
}

async function open({ host, options, log, taken }: Opener, request: ExportRequest): Promise<NamedExport> {
  const name = options.name ?? uniqueName(request.name ?? nameOfFile(request.image), taken);
  try {
    return { name, request, opened: await openExport(host, request, log) };
  } catch (error) {
    taken.delete(name);
    throw error;
  }
}

/** Whether an export is this one, or a snapshot of it. */
function belongsTo(found: string, name: string): boolean {
  return found === name || found.startsWith(`${name}@`);
}

function listenError(error: unknown, listen: NbdAddress): unknown {
  const cause = error instanceof LunetteError ? (error.cause ?? error) : error;
  if (!('path' in listen)) return addressError(cause, listen, '--listen');
  if ((cause as { code?: unknown }).code !== 'EADDRINUSE') return error;
  return new LunetteError('EXISTS', 'there is something of this name already', { path: listen.path, cause });
}

async function startMetrics(
  address: Address | undefined,
  host: ImageHost,
  server: NbdServer,
): Promise<MetricsEndpoint | undefined> {
  if (address === undefined) return undefined;
  const [{ Metrics }, { MetricsEndpoint }] = await Promise.all([
    import('./metrics.ts'),
    import('./metrics-endpoint.ts'),
  ]);
  return MetricsEndpoint.listen(address, new Metrics({ nbd: () => server.counters, cache: () => host.cache.stats }));
}

/** The server's events with their fields in the text, so that a person sees them too. */
function serverLog(log: ServerLog): { info: typeof log.info; warn: typeof log.warn } {
  const text = (fields: LogFields, message: string): string => {
    const known = Object.entries(fields).filter(([, value]) => value !== undefined && value !== '');
    return known.length === 0 ? message : `${message} (${known.map(([key, value]) => `${key} ${value}`).join(', ')})`;
  };
  return {
    info: (fields, message) => log.info(fields, text(fields, message)),
    warn: (fields, message) => log.warn(fields, text(fields, message)),
  };
}
