import { LunetteError } from '../../formats/core/errors.ts';

/** The kernel's limit for dev_config, characters. */
export const MAX_CONFIG_LENGTH = 255;

/** What a backstore's configuration string says, decoded. */
export interface TcmuConfig {
  /** What stands before the first slash: the handler. */
  readonly handler: string;
  /** What stands behind it, before the first semicolon. */
  readonly image: string;
  /** An internal snapshot, by id or name. */
  readonly snapshot: string | undefined;
  readonly readOnly: boolean;
  /** Writes go to this qcow2 file. */
  readonly overlay: string | undefined;
  /** Files that hold a passphrase each, to be tried on encrypted images. */
  readonly secretFile: readonly string[] | undefined;
  /** qcow2: clusters that are discarded keep their place in the file. */
  readonly discardNoUnref: boolean;
  /** The image is the disc of a CD or DVD drive; undefined: as its name says. */
  readonly optical: boolean | undefined;
}

/** Diagnostics of tcmu-runner in configurations that were saved under it. */
const PASSED_OVER = new Set(['tcmur_cmd_time_out']);

/** What LIO and targetcli cannot carry: they take it for the end, or for another option. */
const FORBIDDEN = /[:,\s]/;

/**
 * Parses `HANDLER/IMAGE[;option[=value]]…`, as LIO keeps it in dev_config. `%XX` stands for a byte, here and in what is behind an option.
 *
 * @throws {LunetteError} INVALID saying what is wrong and how to write it
 */
export function parseConfigString(text: string): TcmuConfig {
  if (text.length > MAX_CONFIG_LENGTH) {
    throw invalid(`the configuration has ${text.length} characters, and the kernel takes ${MAX_CONFIG_LENGTH}`);
  }
  const forbidden = FORBIDDEN.exec(text)?.[0];
  if (forbidden !== undefined) {
    throw invalid(
      `LIO cannot keep ${JSON.stringify(forbidden)} in a configuration`,
      `Write ${escapeText(forbidden)} for it.`,
    );
  }
  const slash = text.indexOf('/');
  if (slash <= 0) throw invalid('the configuration is not HANDLER/IMAGE');
  const [image = '', ...options] = text.slice(slash + 1).split(';');
  if (image === '') throw invalid('the configuration names no image');
  const config = {
    handler: text.slice(0, slash),
    image: unescapeText(image),
    snapshot: undefined as string | undefined,
    readOnly: false,
    overlay: undefined as string | undefined,
    secretFile: undefined as readonly string[] | undefined,
    discardNoUnref: false,
    optical: undefined as boolean | undefined,
  };
  for (const option of options) {
    if (option === '') continue;
    const equals = option.indexOf('=');
    const name = equals < 0 ? option : option.slice(0, equals);
    const value = equals < 0 ? undefined : unescapeText(option.slice(equals + 1));
    if (PASSED_OVER.has(name)) continue;
    if (name === 'readonly') config.readOnly = flagOf(name, value);
    else if (name === 'optical') config.optical = flagOf(name, value);
    else if (name === 'disk') config.optical = !flagOf(name, value);
    else if (name === 'snapshot') config.snapshot = givenValue(name, value);
    else if (name === 'overlay') config.overlay = absolute(givenValue(name, value));
    else if (name === 'discard-no-unref') config.discardNoUnref = flagOf(name, value);
    else if (name === 'secret-file') {
      config.secretFile = [...(config.secretFile ?? []), absolute(givenValue(name, value))];
    } else
      throw invalid(
        `there is no option ${JSON.stringify(name)}`,
        'Options: snapshot=NAME, readonly, overlay=FILE, secret-file=FILE, discard-no-unref, optical, disk.',
      );
  }
  if (config.readOnly && config.overlay !== undefined) throw invalid('a read-only disk has no use for an overlay');
  if (config.readOnly && config.discardNoUnref) throw invalid('a read-only disk discards nothing: discard-no-unref');
  if (config.optical === true && config.overlay !== undefined) throw invalid('a disc has no use for an overlay');
  return config;
}

/** @throws {LunetteError} INVALID unless the path is absolute: the daemon's working directory is nobody's */
export function absolute(path: string): string {
  if (path.startsWith('/')) return path;
  throw invalid(`${path} is not an absolute path`, 'Begin the path with a slash: cfgstring=/images/disk.qcow2.');
}

/** The text as it can stand in a configuration string. */
export function escapeText(text: string): string {
  return [...Buffer.from(text, 'utf8')]
    .map((byte) => {
      const safe = byte > 0x20 && byte < 0x7f && !/[:,%;=]/.test(String.fromCharCode(byte));
      return safe ? String.fromCharCode(byte) : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
    })
    .join('');
}

function unescapeText(text: string): string {
  if (!text.includes('%')) return text;
  if (/%(?![0-9a-f]{2})/i.test(text)) {
    throw invalid(
      `in ${text} a percent sign is not followed by two hexadecimal digits`,
      'Write %25 for the sign itself.',
    );
  }
  const bytes: number[] = [];
  for (let at = 0; at < text.length; ) {
    if (text[at] === '%') {
      bytes.push(Number.parseInt(text.slice(at + 1, at + 3), 16));
      at += 3;
    } else {
      const character = String.fromCodePoint(text.codePointAt(at) as number);
      bytes.push(...Buffer.from(character, 'utf8'));
      at += character.length;
    }
  }
  const decoded = Buffer.from(bytes).toString('utf8');
  if (decoded.includes('\0')) throw invalid('a zero byte cannot be in a name');
  return decoded;
}

function flagOf(name: string, value: string | undefined): boolean {
  if (value !== undefined) throw invalid(`the option ${name} has no value`);
  return true;
}

function givenValue(name: string, value: string | undefined): string {
  if (value === undefined || value === '') throw invalid(`the option ${name} needs a value: ${name}=…`);
  return value;
}

function invalid(why: string, help?: string): LunetteError {
  return new LunetteError('INVALID', why, { help });
}
