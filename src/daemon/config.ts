import { readFile } from 'node:fs/promises';
import { parse, TomlError } from 'smol-toml';
import type { core, output } from 'zod';
import { errnoOf, fromSystemError, LunetteError } from '../../formats/core/errors.ts';
import { parseSize } from '../../formats/core/units.ts';
import { parseAddress } from './address.ts';
import * as z from './schema.ts';

/** What `lunette daemon` is told by its configuration file: keys as in docs/daemon.md, values checked and filled in. */
export type DaemonConfig = output<typeof SCHEMA>;
/** One `[[export]]`: an image that the daemon serves from the start. */
export type ConfiguredExport = DaemonConfig['export'][number];

/** The largest file that is read, bytes. */
const MAX_LENGTH = 1024 * 1024;

const ISCSI_PORT = 3260;
const NBD_PORT = 10809;
const METRICS_PORT = 9926;

const text = z.string().min(1, 'must not be empty');
const absolute = text.regex(/^\//, 'must be an absolute path');
const size = z.union([z.int().nonnegative(), text]).transform((value, context) => {
  const bytes = typeof value === 'number' ? value : parseSize(value);
  if (bytes !== undefined) return bytes;
  context.addIssue({ code: 'custom', message: 'must be a size: bytes, or a number with k, M, G, T' });
  return z.NEVER;
});

function address(defaultPort: number) {
  return text.transform((value, context) => {
    try {
      return parseAddress(value, defaultPort);
    } catch (error) {
      context.addIssue({ code: 'custom', message: `is no address: ${(error as Error).message}` });
      return z.NEVER;
    }
  });
}

const CHAP = {
  'chap-user': text.optional(),
  'chap-secret-file': absolute.optional(),
  'mutual-chap-user': text.optional(),
  'mutual-chap-secret-file': absolute.optional(),
};

const TCMU = z.strictObject({
  /** Serve the devices that targetcli makes. */
  enable: z.boolean().default(true),
  /** What is done about devices of handlers that are not ours: without an answer their creator waits for ever. */
  'unknown-handlers': z.enum(['refuse', 'leave']).default('refuse'),
});

const ISCSI = z.strictObject({
  listen: address(ISCSI_PORT).default({ host: '127.0.0.1', port: ISCSI_PORT }),
  ...CHAP,
  'allow-initiators': z.array(text).default([]),
});

const NBD = z.strictObject({
  listen: address(NBD_PORT).default({ host: '127.0.0.1', port: NBD_PORT }),
  socket: absolute.optional(),
  'tls-cert': absolute.optional(),
  'tls-key': absolute.optional(),
  'tls-ca': absolute.optional(),
  'tls-psk-file': absolute.optional(),
  'tls-required': z.boolean().default(false),
});

const LIO = z.strictObject({
  fabric: z.enum(['iscsi', 'loopback']).default('iscsi'),
  listen: address(ISCSI_PORT).default({ host: '127.0.0.1', port: ISCSI_PORT }),
  ...CHAP,
  'allow-initiators': z.array(text).default([]),
});

const EXPORT = z.strictObject({
  name: text.regex(/^[A-Za-z0-9][A-Za-z0-9._-]*$/, 'must be letters, digits, dots, dashes and underscores'),
  image: text,
  transport: z.enum(['iscsi', 'nbd', 'lio']),
  format: text.optional(),
  snapshot: text.optional(),
  'read-only': z.boolean().default(false),
  overlay: absolute.optional(),
  /** The passphrase of an encrypted image. */
  'secret-file': absolute.optional(),
  'discard-no-unref': z.boolean().default(false),
  optical: z.boolean().default(false),
  'block-size': z.union([z.literal(512), z.literal(4096)]).default(512),
});

const SCHEMA = z.strictObject({
  /** Memory for decompressed clusters and tables, bytes. */
  cache: size.default(256 * 1024 * 1024),
  /** Directories that images, and files that images name, may be in. None: an image's own directory and below. */
  allow: z.array(absolute).default([]),
  'state-directory': absolute.default('/var/lib/lunette'),
  metrics: address(METRICS_PORT).optional(),
  'log-level': z.enum(['error', 'warn', 'info', 'debug']).default('info'),
  tcmu: TCMU.default(TCMU.parse({})),
  iscsi: ISCSI.default(ISCSI.parse({})),
  nbd: NBD.default(NBD.parse({})),
  lio: LIO.default(LIO.parse({})),
  export: z.array(EXPORT).default([]),
});

/** Sections whose CHAP keys belong together. */
const WITH_CHAP = ['iscsi', 'lio'] as const;

/**
 * Reads a configuration file.
 *
 * @throws {LunetteError} NOT_FOUND, ACCESS; INVALID with the line (TOML) or the key that is wrong
 */
export async function readConfig(path: string): Promise<DaemonConfig> {
  let content: Buffer;
  try {
    content = await readFile(path);
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
    throw fromSystemError(error, 'reading the configuration', { path });
  }
  if (content.length > MAX_LENGTH)
    throw new LunetteError('INVALID', `${content.length} bytes are no configuration`, { path });
  return parseConfig(content.toString('utf8'), path);
}

/** @param path for errors */
export function parseConfig(toml: string, path: string): DaemonConfig {
  const result = SCHEMA.safeParse(parseToml(toml, path), { reportInput: true });
  if (!result.success) {
    const [issue] = result.error.issues;
    throw invalid(path, keyOf(issue?.path ?? []), wordsOf(issue as core.$ZodIssue));
  }
  checkTogether(result.data, path);
  return result.data;
}

function parseToml(toml: string, path: string): unknown {
  try {
    return parse(toml);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    // Its message goes on with an excerpt of the file.
    const [first = 'is no TOML'] = error.message.split('\n');
    throw new LunetteError('INVALID', `line ${error.line}, column ${error.column}: ${first}`, { path, cause: error });
  }
}

/** What no key can say alone. */
function checkTogether(config: DaemonConfig, path: string): void {
  const names = new Set<string>();
  config.export.forEach((entry, index) => {
    const key = `export[${index}]`;
    if (names.has(entry.name)) throw invalid(path, `${key}.name`, `${entry.name} is the name of another export`);
    names.add(entry.name);
    if (!entry.image.startsWith('/') && !/^[a-z+]+:/.test(entry.image)) {
      throw invalid(path, `${key}.image`, 'must be an absolute path or a URL: a daemon has no directory of its own');
    }
    if ((entry['read-only'] || entry.optical) && entry.overlay !== undefined) {
      throw invalid(path, `${key}.overlay`, 'has no use where nothing can be written');
    }
    if (entry['discard-no-unref'] && (entry['read-only'] || entry.optical)) {
      throw invalid(path, `${key}.discard-no-unref`, 'has no use where nothing can be written');
    }
    if (entry.optical && entry.transport === 'nbd') throw invalid(path, `${key}.optical`, 'is not for nbd');
  });
  const uses = (transport: string): boolean => config.export.some((entry) => entry.transport === transport);
  const [own, kernel] = [config.iscsi.listen, config.lio.listen];
  if (uses('iscsi') && uses('lio') && config.lio.fabric === 'iscsi' && own.port === kernel.port && own.port !== 0) {
    throw invalid(
      path,
      'lio.listen',
      `has the port of iscsi.listen, ${own.port}: the kernel and we cannot both have it`,
    );
  }
  for (const section of WITH_CHAP) {
    const has = (key: keyof typeof CHAP): boolean => config[section][key] !== undefined;
    for (const kind of ['chap', 'mutual-chap'] as const) {
      if (has(`${kind}-user`) !== has(`${kind}-secret-file`)) {
        throw invalid(path, `${section}.${kind}-user`, `and ${kind}-secret-file go together`);
      }
    }
    if (has('mutual-chap-user') && !has('chap-user')) {
      throw invalid(path, `${section}.mutual-chap-user`, 'is for initiators that log in with chap-user');
    }
  }
}

function invalid(path: string, key: string, why: string): LunetteError {
  return new LunetteError('INVALID', key === '' ? why : `${key}: ${why}`, {
    path,
    field: key === '' ? undefined : key,
  });
}

function keyOf(path: readonly PropertyKey[]): string {
  return path.reduce<string>(
    (key, part) => (typeof part === 'number' ? `${key}[${part}]` : `${key}${key === '' ? '' : '.'}${String(part)}`),
    '',
  );
}

function wordsOf(issue: core.$ZodIssue): string {
  switch (issue.code) {
    case 'unrecognized_keys':
      return `there is no key ${issue.keys.join(', ')} here`;
    case 'invalid_type':
      return issue.input === undefined ? 'is missing' : `must be of type ${issue.expected}`;
    case 'invalid_value':
      return `must be one of ${issue.values.join(', ')}`;
    default:
      return issue.message;
  }
}
