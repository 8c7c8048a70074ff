import { LunetteError } from '../core/errors.ts';
import { alignUp, KiB } from '../core/units.ts';
import type { CreateRequest, CreateValues, FormatCreator } from '../driver.ts';
import { type LuksOptions, luksHeaderBytes } from '../luks/create.ts';
import { type CreateQcow2Options, checkCreateOptions, createQcow2 } from './create.ts';
import type { Preallocation } from './preallocate.ts';

/** New qcow2 images. Options have the names and defaults of qemu-img. */
export const qcow2Creator: FormatCreator = {
  format: 'qcow2',
  options: [
    { name: 'cluster_size', kind: 'size', default: 64 * KiB, meaning: 'bytes in a cluster: 512 to 2M, a power of two' },
    {
      name: 'extended_l2',
      kind: 'boolean',
      default: false,
      meaning: 'clusters have 32 parts that are allocated one by one: small writes over a backing file copy little',
    },
    {
      name: 'preallocation',
      kind: 'choice',
      choices: ['off', 'metadata', 'falloc', 'full'],
      meaning: 'what is made beforehand: nothing, the tables, the space as well, the space written with zeros',
    },
    {
      name: 'compression_type',
      kind: 'choice',
      choices: ['zlib', 'zstd'],
      default: 'zlib',
      meaning: 'how compressed clusters are compressed',
    },
    {
      name: 'compat',
      kind: 'choice',
      choices: ['0.10', '1.1', 'v2', 'v3'],
      meaning: 'version of the format: 0.10 (v2) or 1.1 (v3, the default)',
    },
    { name: 'data_file', kind: 'string', meaning: 'a file of its own for the data, beside the image' },
    { name: 'data_file_raw', kind: 'boolean', meaning: 'the data file is the disk as a raw image at all times' },
    {
      name: 'lazy_refcounts',
      kind: 'boolean',
      default: false,
      meaning: 'writers may put off refcounts; an image that was not closed is repaired when it is opened',
    },
    {
      name: 'encrypt.format',
      kind: 'choice',
      choices: ['luks'],
      meaning: 'encrypt the data; the passphrase is in the file that --secret-file names',
    },
    { name: 'encrypt.cipher-alg', kind: 'string', meaning: 'aes-256 (the default), aes-192 (cbc only) or aes-128' },
    { name: 'encrypt.cipher-mode', kind: 'string', meaning: 'xts (the default) or cbc' },
    { name: 'encrypt.ivgen-alg', kind: 'string', meaning: 'plain64 (the default), plain or essiv' },
    { name: 'encrypt.ivgen-hash-alg', kind: 'string', meaning: 'hash of essiv: sha256' },
    { name: 'encrypt.hash-alg', kind: 'string', meaning: 'hash that makes keys of passphrases: sha256, sha1, sha512' },
    { name: 'encrypt.iter-time', kind: 'number', meaning: 'time that opening shall take, milliseconds: 2000' },
    { name: 'refcount_bits', kind: 'number', default: 16, meaning: 'bits in a refcount: 1 to 64, a power of two' },
  ],
  sizeOf: (size) => alignUp(size, 512),
  async create(storage, { size, values, backing, createFile, secret }) {
    const dataFile = values.data_file as string | undefined;
    const options: CreateQcow2Options = {
      size,
      clusterSize: values.cluster_size as number,
      version: values.compat === '0.10' || values.compat === 'v2' ? 2 : 3,
      refcountBits: values.refcount_bits as number,
      lazyRefcounts: values.lazy_refcounts === true,
      compressionType: compressionType(values.compression_type),
      backingFile: backing?.reference,
      backingFormat: backing?.format,
      extendedL2: values.extended_l2 === true,
      preallocation: (values.preallocation ?? 'off') as Preallocation,
      dataFile,
      dataFileRaw: values.data_file_raw === true,
      encryption: await encryptionOf(values, secret),
    };
    checkCreateOptions(options); // before a data file is emptied
    if (dataFile === undefined) return createQcow2(storage, options);
    const dataStorage = await createFile(dataFile);
    try {
      await createQcow2(storage, { ...options, dataStorage });
    } finally {
      await dataStorage.close();
    }
  },
};

/** Bytes of the encryption header that an image with these options gets; none without encryption. */
export function encryptionHeaderBytes(values: CreateValues): number {
  const options = cipherOptions(values);
  return options === undefined ? 0 : luksHeaderBytes(options);
}

async function encryptionOf(values: CreateValues, secret: CreateRequest['secret']): Promise<LuksOptions | undefined> {
  const options = cipherOptions(values);
  if (options === undefined) return undefined;
  const passphrase = await secret?.();
  if (passphrase === undefined) {
    throw new LunetteError('ENCRYPTED', 'an encrypted image needs a passphrase');
  }
  return { secret: passphrase, ...options };
}

/** How the data is encrypted; undefined: it is not. */
function cipherOptions(values: CreateValues): Omit<LuksOptions, 'secret'> | undefined {
  const text = (name: string): string | undefined => values[`encrypt.${name}`] as string | undefined;
  if (text('format') === undefined) {
    const given = Object.keys(values).find((name) => name.startsWith('encrypt.') && values[name] !== undefined);
    if (given !== undefined) throw new LunetteError('INVALID', `${given} without encrypt.format=luks`);
    return undefined;
  }
  return {
    cipherAlg: text('cipher-alg'),
    cipherMode: text('cipher-mode'),
    ivgenAlg: text('ivgen-alg'),
    ivgenHashAlg: text('ivgen-hash-alg'),
    hashAlg: text('hash-alg'),
    iterTimeMs: values['encrypt.iter-time'] as number | undefined,
  };
}

function compressionType(value: unknown): 'zlib' | 'zstd' {
  if (value === 'zlib' || value === 'zstd') return value;
  throw new LunetteError('INVALID', `there is no compression type ${value}`);
}
