import path from 'node:path';
import { UsageError } from '../../formats/core/errors.ts';

/** An image format that QEMU opens for us. */
export interface BridgeFormat {
  /** QEMU's name of the driver. */
  readonly driver: string;
  /** What people call it, beside the driver's name. */
  readonly aliases: readonly string[];
  readonly title: string;
  /** QEMU only reads it. */
  readonly readOnly?: true;
  /** It opens with a secret only. */
  readonly secret?: true;
}

/** Formats that stand for a local file: `qemu:FORMAT:PATH`. Those that Lunette has itself can be read through QEMU, too, for comparing. */
export const BRIDGE_FORMATS: readonly BridgeFormat[] = [
  { driver: 'vpc', aliases: ['vhd'], title: 'VHD' },
  { driver: 'vhdx', aliases: [], title: 'VHDX' },
  { driver: 'qed', aliases: [], title: 'QED' },
  { driver: 'parallels', aliases: ['hdd'], title: 'Parallels' },
  { driver: 'dmg', aliases: [], title: 'DMG', readOnly: true },
  { driver: 'bochs', aliases: [], title: 'Bochs', readOnly: true },
  { driver: 'cloop', aliases: [], title: 'cloop', readOnly: true },
  { driver: 'luks', aliases: [], title: 'LUKS', secret: true },
  { driver: 'qcow', aliases: ['qcow1'], title: 'qcow version 1' },
  { driver: 'qcow2', aliases: [], title: 'qcow2' },
  { driver: 'vmdk', aliases: [], title: 'VMDK' },
  { driver: 'vdi', aliases: [], title: 'VDI' },
  { driver: 'raw', aliases: [], title: 'raw' },
];

/** Protocols of QEMU: `qemu:` and then the whole of QEMU's file name. */
export const BRIDGE_PROTOCOLS = ['rbd', 'gluster', 'ssh', 'nfs', 'iscsi', 'http', 'https', 'ftp', 'ftps'] as const;

/** What `qemu:…` means. */
export interface BridgeSource {
  /** As it was typed. */
  readonly text: string;
  /** QEMU's driver of the format; undefined where the JSON decides. */
  readonly format: string | undefined;
  /** The local file, made absolute; undefined where there is none or QEMU alone knows. */
  readonly file: string | undefined;
  /** QEMU's own name for it: a protocol's URL, or `json:{…}`. Undefined for a local file. */
  readonly filename: string | undefined;
  readonly readOnly: boolean;
}

/**
 * Takes a name apart: `qemu:FORMAT:PATH`, `qemu:PROTOCOL:…` or `qemu:json:{…}`. All behind the second colon is the path, whatever is in it.
 *
 * @param format what the user says the content is, beside the name
 * @throws {UsageError} USAGE
 */
export function parseBridgeSource(text: string, format?: string): BridgeSource {
  const fail = (why: string, help: string): never => {
    throw new UsageError('USAGE', why, { path: text, help });
  };
  const known = BRIDGE_FORMATS.map(({ driver }) => driver).join(', ');
  const [, word = '', rest = ''] = /^qemu:([a-z0-9+.-]*):(.*)$/is.exec(text) ?? [];
  const name = word.toLowerCase();
  if (name === 'json') {
    if (format !== undefined)
      fail('JSON says the format itself', 'Leave -f out: qemu:json:{"driver":"vhdx","file":…}.');
    const driver = jsonDriver(rest);
    if (driver === undefined) {
      fail(
        'behind qemu:json: a JSON object with a driver is missing',
        'Write qemu:json:{"driver":"vhdx","file":{"driver":"file","filename":"disk.vhdx"}}.',
      );
    }
    return { text, format: driver, file: undefined, filename: `json:${rest}`, readOnly: false };
  }
  if ((BRIDGE_PROTOCOLS as readonly string[]).includes(name.replace(/\+.*$/, ''))) {
    const inside = format === undefined ? undefined : formatOf(format);
    if (format !== undefined && inside === undefined) fail(`${format} is no format of QEMU's`, `Known: ${known}.`);
    return {
      text,
      format: inside?.driver,
      file: undefined,
      filename: text.slice('qemu:'.length),
      readOnly: inside?.readOnly === true,
    };
  }
  const found = formatOf(name);
  if (found === undefined || rest === '') {
    return fail(
      name === '' || found !== undefined ? 'the format or the path is missing' : `the bridge has no format ${name}`,
      `Write qemu:FORMAT:PATH with one of ${known}; or qemu:json:{…}.`,
    );
  }
  if (format !== undefined && formatOf(format) !== found) {
    fail(`-f ${format} contradicts the name`, 'The format stands in the name: leave -f out.');
  }
  return {
    text,
    format: found.driver,
    file: path.resolve(rest),
    filename: undefined,
    readOnly: found.readOnly === true,
  };
}

function formatOf(name: string): BridgeFormat | undefined {
  return BRIDGE_FORMATS.find(({ driver, aliases }) => driver === name || aliases.includes(name));
}

function jsonDriver(text: string): string | undefined {
  try {
    const { driver } = JSON.parse(text) as { driver?: unknown };
    return typeof driver === 'string' ? driver : undefined;
  } catch {
    return undefined;
  }
}
