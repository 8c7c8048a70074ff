import path from 'node:path';
import { LunetteError } from '../../formats/core/errors.ts';
import type { ImageHost } from '../../formats/index.ts';
import { MAX_STRING } from '../nbd/protocol.ts';
import { NbdServer } from '../nbd/server.ts';
import { readTls, type TlsFiles } from '../nbd/tls.ts';
import { formatNbdUri, type NbdAddress } from '../nbd/uri.ts';
import { createHost, type HostOptions } from '../open/host.ts';
import { type Address, addressError, connectHost } from './address.ts';
import { closeInOrder, closeTogether } from './close-in-order.ts';
import { type LogFields, type ServerLog, SILENT } from './log.ts';
import type { MetricsEndpoint } from './metrics-endpoint.ts';
import { nameOfFile, uniqueName } from './names.ts';
import { type NamedExport, NbdExports } from './nbd-exports.ts';
import { checkRequest, type ExportRequest, openExport } from './open-export.ts';

export interface NbdImageServerOptions extends Omit<HostOptions, 'warn'> {
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
  readonly images: readonly ServedNbdImage[];
  /** Names of snapshots that are served beside the images. */
  readonly snapshotNames: readonly string[];
  /** Where it listens, with the port that was picked. */
  readonly address: NbdAddress;
  readonly #host: ImageHost;
  readonly #opened: readonly NamedExport[];
  readonly #server: NbdServer;
  readonly #metrics: MetricsEndpoint | undefined;
  #closing: Promise<void> | undefined;

  private constructor(
    host: ImageHost,
    opened: readonly NamedExport[],
    exports: NbdExports,
    server: NbdServer,
    metrics: MetricsEndpoint | undefined,
    options: NbdImageServerOptions,
  ) {
    this.#host = host;
    this.#opened = opened;
    this.#server = server;
    this.#metrics = metrics;
    const { listen } = options;
    this.address = 'path' in listen ? { path: path.resolve(listen.path) } : server.address;
    const reached: NbdAddress =
      'path' in this.address ? this.address : { host: connectHost(this.address.host), port: this.address.port };
    this.snapshotNames = exports.snapshotNames;
    this.images = opened.map(({ name, request, opened: { image, format } }) => ({
      request,
      url: formatNbdUri(reached, name, options.tlsRequired === true),
      name,
      format,
      size: image.size,
      readOnly: image.readOnly || request.readOnly === true,
    }));
  }

  /**
   * Opens the images and listens. When one image fails, none is served.
   *
   * @throws {LunetteError} what opening an image throws; INVALID for options that contradict each other; EXISTS when the port is taken
   */
  static async start(options: NbdImageServerOptions): Promise<NbdImageServer> {
    const log = options.log ?? SILENT;
    checkNbdOptions(options);
    const credentials = options.tls === undefined ? undefined : await readTls(options.tls);
    const host = createHost({ ...options, warn: (message, image) => log.warn({ image }, `${image}: ${message}`) });
    const undo: (() => Promise<void>)[] = [() => host.close()];
    try {
      const opened = await openAll(host, options, log);
      undo.push(async () => {
        await Promise.all(opened.map(({ opened: { image } }) => image.close()));
      });
      const exports = await NbdExports.create(host, opened, log);
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
      return new NbdImageServer(host, opened, exports, server, metrics, options);
    } catch (error) {
      for (const step of undo.reverse()) await step().catch(() => undefined);
      throw error;
    }
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
    // The guard of a probed image has writes of its own to wait for; the host closes what is below, and snapshots.
    return closeInOrder([
      () => this.#server.close({ graceMs }),
      () => closeTogether(this.#opened.map(({ opened }) => opened.image)),
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

async function openAll(host: ImageHost, options: NbdImageServerOptions, log: ServerLog): Promise<NamedExport[]> {
  const taken = new Set<string>();
  const opened: NamedExport[] = [];
  for (const request of options.exports) {
    const name = options.name ?? uniqueName(request.name ?? nameOfFile(request.image), taken);
    opened.push({ name, request, opened: await openExport(host, request, log) });
  }
  return opened;
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
