import { LunetteError } from '../../formats/core/errors.ts';
import { parseNbdUri } from '../nbd/uri.ts';
import { parseBridgeSource } from '../qemu/source.ts';
import { absolute, parseConfigString } from '../tcmu/config-string.ts';
import type { ExportRequest } from './open-export.ts';

/** A kind of images, as `user:NAME` in targetcli and as the first word of dev_config. */
interface Handler {
  readonly name: string;
  /** Undefined: found by looking. */
  readonly format: string | undefined;
  readonly what: string;
  /** How `cfgstring=` is written. Default: an absolute path. */
  readonly form?: string;
  /** Another program opens the image: its name for ExportRequest, by what stands behind the handler. Default: the path of a file. */
  readonly remote?: (text: string) => string;
}

const OPTIONS =
  'Options: ;snapshot=NAME ;readonly ;overlay=/FILE.qcow2 ;secret-file=/FILE (a passphrase) ;discard-no-unref ;optical (a DVD drive, as for .iso) ;disk (not). Write %3A for a colon, %2C for a comma, %20 for a blank.';

const HANDLERS: readonly Handler[] = [
  { name: 'qcow2', format: 'qcow2', what: 'a qcow2 image' },
  { name: 'vmdk', format: 'vmdk', what: 'a VMware disk' },
  { name: 'vdi', format: 'vdi', what: 'a VirtualBox disk' },
  { name: 'raw', format: 'raw', what: 'a raw image or a block device' },
  { name: 'image', format: undefined, what: 'an image of any format, found by looking' },
  { name: 'nbd', format: 'raw', what: 'an export of an NBD server', form: 'HOST%3APORT/NAME', remote: nbdUrl },
  {
    name: 'qemu',
    format: undefined,
    what: 'an image that QEMU opens for us (vhd, vhdx, qed, parallels, dmg…)',
    form: 'FORMAT//ABSOLUTE/PATH',
    remote: bridgeName,
  },
  // For configurations that were saved under tcmu-runner.
  { name: 'qcow', format: 'qcow2', what: 'a qcow2 image (the name that tcmu-runner has for it)' },
  { name: 'file', format: 'raw', what: 'a raw image (the name that tcmu-runner has for it)' },
];

/** What a device's configuration asks for: an image, and what kind of unit shows it. */
export interface TcmuRequest extends ExportRequest {
  readonly optical: boolean;
}

/** Names and help texts, for targetcli. */
export function handlerDescriptions(): { readonly name: string; readonly description: string }[] {
  return HANDLERS.map(({ name, what, form = '/ABSOLUTE/PATH' }) => ({
    name,
    description: `${what}: cfgstring=${form}[;OPTION…]. ${OPTIONS}`,
  }));
}

/** Whether devices with this first word in their configuration are ours. */
export function isOurHandler(config: string): boolean {
  return HANDLERS.some(({ name }) => config.startsWith(`${name}/`));
}

/**
 * What a device's configuration asks for.
 *
 * @throws {LunetteError} INVALID saying what is wrong with it
 */
export function requestOf(configString: string): TcmuRequest {
  const config = parseConfigString(configString);
  const handler = HANDLERS.find(({ name }) => name === config.handler);
  if (handler === undefined) {
    throw new LunetteError('INVALID', `there is no handler ${config.handler}`, {
      help: `Handlers: ${HANDLERS.map(({ name }) => name).join(', ')}.`,
    });
  }
  const { snapshot, readOnly, overlay, secretFile } = config;
  const image = handler.remote === undefined ? absolute(config.image) : handler.remote(config.image);
  if (handler.remote !== undefined && overlay !== undefined) {
    throw new LunetteError('INVALID', 'an overlay on what another program opens cannot be served');
  }
  // A disc in a drive is what somebody wants who names an .iso file; `disk` says otherwise.
  const optical = config.optical ?? (overlay === undefined && /\.iso$/i.test(image));
  return {
    image,
    format: handler.format,
    snapshot,
    readOnly: readOnly || optical || undefined,
    overlay,
    secretFile,
    discardNoUnref: config.discardNoUnref || undefined,
    optical,
  };
}

/** `HOST:PORT/NAME`, or a whole URL. */
function nbdUrl(text: string): string {
  const url = /^nbds?(\+\w+)?:\/\//.test(text) ? text : `nbd://${text.replace(/^\/+/, '')}`;
  parseNbdUri(url);
  return url;
}

/** `FORMAT/PATH` as the bridge's `qemu:FORMAT:PATH`. The path is absolute, with its slash or without. */
function bridgeName(text: string): string {
  const [, format, path] = /^([^/]+)\/+(.+)$/s.exec(text) ?? [];
  if (format === undefined || path === undefined) {
    throw new LunetteError('INVALID', 'the configuration is not qemu/FORMAT/PATH', {
      help: 'For example cfgstring=vhdx//images/disk.vhdx.',
    });
  }
  const name = `qemu:${format}:/${path}`;
  if (parseBridgeSource(name).file === undefined) {
    throw new LunetteError('INVALID', `${format} is no format of a file here`);
  }
  return name;
}
