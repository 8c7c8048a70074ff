import { lookup } from 'node:dns/promises';
import { mkdtempSync, readdirSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { hostname, tmpdir } from 'node:os';
import path from 'node:path';
import { codeOf, LunetteError } from '../../formats/core/errors.ts';
import type { ImageHost } from '../../formats/index.ts';
import { CONFIGFS_TARGET, KernelTarget } from '../lio/provision.ts';
import type { BackstoreRequest, ChapRequest, TargetRequest } from '../lio/request.ts';
import { loopbackName, nexusName, serialNumber } from '../lio/target-names.ts';
import { createHost, type HostOptions } from '../open/host.ts';
import { parseBridgeSource } from '../qemu/source.ts';
import { escapeText } from '../tcmu/config-string.ts';
import type { Address } from './address.ts';
import { closeInOrder } from './close-in-order.ts';
import { type ServerLog, SILENT } from './log.ts';
import { nameOfFile, targetName, uniqueName } from './names.ts';
import { checkRequest, type ExportRequest, openExport } from './open-export.ts';
import { TcmuService } from './tcmu-service.ts';

/** What a kernel export is told. */
export interface KernelExportOptions extends Omit<HostOptions, 'warn'> {
  /** Opens the images, beside those of others in this process; it stays the caller's. Default: one of its own. */
  readonly host?: ImageHost | undefined;
  readonly exports: readonly ExportRequest[];
  readonly fabric: 'iscsi' | 'loopback';
  /** Where the kernel's iSCSI target listens. */
  readonly listen: Address;
  /** As in ImageServerOptions. */
  readonly name?: string | undefined;
  readonly oneTarget?: boolean | undefined;
  readonly chap?: { readonly user: string; readonly secret: string } | undefined;
  readonly mutualChap?: { readonly user: string; readonly secret: string } | undefined;
  readonly allowedInitiators?: readonly string[] | undefined;
  readonly blockSize?: 512 | 4096 | undefined;
  readonly optical?: boolean | undefined;
  readonly log?: ServerLog | undefined;
}

/** An image that the kernel serves. */
export interface ServedKernelImage {
  readonly request: ExportRequest;
  /** `lio://TARGET/LUN`, or over loopback the disk: `/dev/sdX`. */
  readonly url: string;
  readonly format: string;
  /** Bytes. */
  readonly size: number;
}

interface Planned {
  readonly request: ExportRequest;
  readonly format: string;
  readonly size: number;
  readonly backstore: BackstoreRequest;
}

/**
 * Images as LUNs of the kernel's target: backstores and targets are made in configfs, and their commands are served by the daemon that runs,
 * or by this process where none does.
 */
export class KernelExport {
  readonly images: readonly ServedKernelImage[];
  readonly #targets: readonly KernelTarget[];
  readonly #end: () => Promise<void>;

  private constructor(
    images: readonly ServedKernelImage[],
    targets: readonly KernelTarget[],
    end: () => Promise<void>,
  ) {
    this.images = images;
    this.#targets = targets;
    this.#end = end;
  }

  /**
   * Opens what is needed to know sizes, begins to serve if nobody does, and makes the targets; nothing is left behind when that fails.
   *
   * @throws {LunetteError} for what is wrong with a request or an image, and what the kernel refuses
   */
  static async start(options: KernelExportOptions): Promise<KernelExport> {
    const { log = SILENT } = options;
    checkKernelOptions(options);
    const warn = (message: string, image: string): void => log.warn({ image }, `${image}: ${message}`);
    const host = options.host ?? createHost({ ...options, warn });
    const temporary: string[] = [];
    const targets: KernelTarget[] = [];
    let service: TcmuService | undefined;
    const end = () =>
      closeInOrder([
        ...[...targets].reverse().map((target) => () => takeDown(target, log)),
        async () => service?.close(),
        () => (options.host === undefined ? host.close() : undefined),
        ...temporary.map((directory) => () => rm(directory, { recursive: true, force: true })),
      ]);
    try {
      const planned = await planAll(host, options, temporary, log);
      service = await serveUnlessServed(host, log);
      const address = options.fabric === 'iscsi' ? await numericAddress(options.listen) : undefined;
      const images: ServedKernelImage[] = [];
      for (const { name, members } of grouped(planned, options)) {
        const target = await KernelTarget.create(targetRequest(name, members, options, address));
        targets.push(target);
        members.forEach(({ request, format, size }, lun) => {
          const url = target.devices[lun] ?? `lio://${name}/${lun}`;
          images.push({ request, url, format, size });
        });
      }
      return new KernelExport(images, targets, end);
    } catch (error) {
      await end().catch(() => undefined);
      throw error;
    }
  }

  get targets(): readonly TargetRequest[] {
    return this.#targets.map(({ request }) => request);
  }

  /** Takes the targets down, then ends serving. Initiators lose the disks. */
  close(): Promise<void> {
    return this.#end();
  }
}

/** @throws {LunetteError} INVALID for what the kernel's target, or a configuration string, cannot carry */
export function checkKernelOptions(options: KernelExportOptions): void {
  const fail = (why: string, help?: string): never => {
    throw new LunetteError('INVALID', why, { help });
  };
  for (const request of options.exports) {
    checkRequest(request);
    for (const key of ['forceShare', 'strict', 'parent', 'ignoreCid', 'force'] as const) {
      if (request[key] !== undefined && request[key] !== false) fail(`${key} cannot be said to a TCMU device`);
    }
    if (request.image.startsWith('qemu:') && bridgedFile(request.image) === undefined) {
      fail(
        'only files can be opened by QEMU for the kernel',
        'qemu:FORMAT:PATH; over the network --transport iscsi takes others.',
      );
    }
  }
  if (options.fabric === 'iscsi' && options.listen.port === 0) {
    fail("the kernel's target needs a port", 'Name one, for example --listen 127.0.0.1:3260.');
  }
  if (options.name !== undefined && options.exports.length > 1 && options.oneTarget !== true) {
    fail('one name for several targets', 'Add --one-target.');
  }
}

/** The configuration string of a request. */
export function configStringOf(request: ExportRequest, optical: boolean): string {
  const url = /^nbds?(\+unix)?:\/\//.test(request.image);
  const bridged = bridgedFile(request.image);
  const handler = url ? 'nbd' : bridged !== undefined ? `qemu/${bridged.format}` : (request.format ?? 'image');
  const image = url ? request.image : path.resolve(bridged?.file ?? request.image);
  const parts = [`${handler}/${escapeText(image)}`];
  if (request.snapshot !== undefined) parts.push(`snapshot=${escapeText(request.snapshot)}`);
  if (request.readOnly === true) parts.push('readonly');
  if (request.overlay !== undefined) parts.push(`overlay=${escapeText(path.resolve(request.overlay))}`);
  for (const file of request.secretFile ?? []) parts.push(`secret-file=${escapeText(path.resolve(file))}`);
  if (request.discardNoUnref === true) parts.push('discard-no-unref');
  parts.push(optical ? 'optical' : 'disk');
  return parts.join(';');
}

/** The file of `qemu:FORMAT:PATH`; undefined for everything else. */
function bridgedFile(image: string): { readonly format: string; readonly file: string } | undefined {
  if (!image.startsWith('qemu:')) return undefined;
  const { format, file } = parseBridgeSource(image);
  return format === undefined || file === undefined ? undefined : { format, file };
}

async function planAll(
  host: ImageHost,
  options: KernelExportOptions,
  temporary: string[],
  log: ServerLog,
): Promise<Planned[]> {
  const taken = backstoreNames();
  const planned: Planned[] = [];
  for (const asked of options.exports) {
    const request = asked.ephemeral === true ? ephemeral(asked, temporary, log) : asked;
    const { format, size } = await look(host, request, log);
    const optical = asked.optical ?? options.optical ?? false;
    const blockSize = optical ? 512 : (asked.blockSize ?? options.blockSize ?? 512);
    const config = configStringOf(request, optical);
    const seed = [hostname(), config].join('\0');
    planned.push({
      request: asked,
      format,
      size,
      backstore: {
        name: uniqueName(asked.name ?? nameOfFile(request.image), taken),
        config,
        size: size - (size % blockSize),
        blockSize,
        serial: serialNumber(seed),
      },
    });
  }
  return planned;
}

/** Writes go to a file that is removed at the end: whoever serves the device opens it by its name. */
function ephemeral(request: ExportRequest, temporary: string[], log: ServerLog): ExportRequest {
  // A directory of its own: what a guest writes is for nobody else to read.
  const directory = mkdtempSync(path.join(tmpdir(), 'lunette-'));
  const overlay = path.join(directory, 'overlay.qcow2');
  temporary.push(directory);
  log.info({ image: request.image }, `${request.image}: writes go to ${overlay} and are thrown away at the end`);
  return { ...request, ephemeral: undefined, overlay };
}

/** Format and size, as whoever serves the device will find them. An overlay is made here if it is missing. */
async function look(
  host: ImageHost,
  request: ExportRequest,
  log: ServerLog,
): Promise<{ format: string; size: number }> {
  const readOnly = request.overlay === undefined;
  const { image, format } = await openExport(host, readOnly ? { ...request, readOnly } : request, log);
  try {
    if (image.size < 4096)
      throw new LunetteError('INVALID', `${image.size} bytes are no disk`, { path: request.image });
    return { format, size: image.size };
  } finally {
    await image.close();
  }
}

/** Begins to serve TCMU devices, unless the daemon does. */
async function serveUnlessServed(host: ImageHost, log: ServerLog): Promise<TcmuService | undefined> {
  try {
    return await TcmuService.start({ host, log, unknownHandlers: 'refuse' });
  } catch (error) {
    if (codeOf(error) !== 'LOCKED') throw error;
    log.info({}, 'another program serves TCMU devices on this machine: it serves these, too');
    return undefined;
  }
}

function grouped(
  planned: readonly Planned[],
  options: KernelExportOptions,
): { name: string; members: readonly Planned[] }[] {
  const taken = new Set<string>();
  const nameFor = ({ request }: Planned): string =>
    uniqueName(targetName(options.name ?? request.name ?? nameOfFile(request.image)), taken);
  const [first] = planned;
  if (first === undefined) return [];
  if (options.oneTarget === true) return [{ name: nameFor(first), members: planned }];
  return planned.map((each) => ({ name: nameFor(each), members: [each] }));
}

function targetRequest(
  name: string,
  members: readonly Planned[],
  options: KernelExportOptions,
  address: Address | undefined,
): TargetRequest {
  const backstores = members.map(({ backstore }) => backstore);
  if (address === undefined) {
    const seed = `${hostname()}\0${name}`;
    return { fabric: 'loopback', wwn: loopbackName(seed), nexus: nexusName(seed), backstores };
  }
  const { chap, mutualChap } = options;
  const credentials: ChapRequest | undefined =
    chap === undefined ? undefined : { ...chap, mutualUser: mutualChap?.user, mutualSecret: mutualChap?.secret };
  return {
    fabric: 'iscsi',
    iqn: name,
    ...address,
    backstores,
    initiators: options.allowedInitiators ?? [],
    chap: credentials,
    readOnly: members.every(({ request }) => request.readOnly === true),
  };
}

/** The kernel takes no host names. */
async function numericAddress({ host, port }: Address): Promise<Address> {
  try {
    return { host: (await lookup(host)).address, port };
  } catch (error) {
    throw new LunetteError('INVALID', `${host} has no address`, { cause: error });
  }
}

async function takeDown(target: KernelTarget, log: ServerLog): Promise<void> {
  const left = await target.close();
  if (left.length === 0) return;
  log.warn({ left }, `the kernel keeps ${left.join(', ')}: something uses it; targetcli removes it later`);
}

function backstoreNames(): Set<string> {
  const names = new Set<string>();
  try {
    for (const hba of readdirSync(path.join(CONFIGFS_TARGET, 'core'))) {
      if (!hba.startsWith('user_')) continue;
      for (const name of readdirSync(path.join(CONFIGFS_TARGET, 'core', hba))) names.add(name);
    }
  } catch {
    // No target here: the service says so.
  }
  return names;
}
