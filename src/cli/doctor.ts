import { errnoOf, LunetteError } from '../../formats/core/errors.ts';
import { loadLz4, loadZstd } from '../../formats/index.ts';
import { type DirectoryFacts, directoryFacts, nativeFacts } from '../io/native.ts';
import { bridgeFacts } from '../open/bridge-facts.ts';
import {
  configfsFact,
  descriptorsFact,
  type Fact,
  findProgram,
  ioUringFact,
  moduleFact,
  procLocksFact,
  programFact,
  systemBusFact,
} from './machine.ts';
import { busPolicyFact, tcmuDaemonFact } from './machine-lio.ts';

/** What `doctor` found, in groups. This is also its JSON. */
export interface Findings {
  readonly lunette: { readonly node: string; readonly platform: string };
  readonly groups: readonly { readonly title: string; readonly facts: readonly Fact[] }[];
}

const REBUILD = 'in a checkout npm run build:addon, else npm rebuild lunette (needs make, python3, g++)';

/** Looks at the machine. Takes nothing over and leaves nothing behind; of other programs it asks at most their version. */
export async function examine(env: Readonly<Record<string, string | undefined>>): Promise<Findings> {
  const lio = 'the kernel’s SCSI target';
  return {
    lunette: { node: process.version, platform: `${process.platform} ${process.arch}` },
    groups: [
      { title: 'Serving images', facts: [nodeFact(), ...addonFacts(), descriptorsFact()] },
      { title: `Files in ${process.cwd()}`, facts: directoryFactsOf(process.cwd()) },
      { title: 'Packages', facts: [await zstdFact(), await lz4Fact(), dbusPackageFact()] },
      {
        title: 'Other programs',
        facts: [
          programFact('qemu-img', env.PATH, 'making, converting and checking images', 'qemu-utils'),
          await bridgeFact(env),
          programFact('iscsi-ls', env.PATH, 'looking at a target', 'libiscsi-bin'),
          programFact('iscsiadm', env.PATH, 'attaching a target to this machine', 'open-iscsi'),
          programFact('targetcli', env.PATH, `configuring ${lio}`, 'targetcli-fb'),
        ],
      },
      {
        title: 'Kernel target (LIO), not needed for iSCSI from lunette itself',
        facts: [
          configfsFact(),
          moduleFact('target_core_mod', lio),
          moduleFact('target_core_user', 'handing its commands to us (TCMU)'),
          moduleFact('iscsi_target_mod', 'its iSCSI fabric'),
          moduleFact('tcm_loop', 'its disks on this machine itself'),
          systemBusFact(env),
          busPolicyFact(),
          tcmuDaemonFact(),
          ioUringFact(),
        ],
      },
    ],
  };
}

async function bridgeFact(env: Readonly<Record<string, string | undefined>>): Promise<Fact> {
  const base = { id: 'qemu-nbd', title: 'qemu-nbd' };
  const configured = env.LUNETTE_QEMU_NBD;
  try {
    const { version, tethered, formats, protocols } = await bridgeFacts(
      configured === undefined || configured === '' ? findProgram('qemu-nbd', env.PATH) : configured,
    );
    const list = (scheme: string, names: readonly string[] | undefined): string =>
      names === undefined ? '' : `; ${scheme}: ${names.join(', ')}`;
    return {
      ...base,
      state: 'yes',
      detail: `${version}, opens qemu:FORMAT:PATH${list('formats', formats)}${list('protocols', protocols)}${
        tethered ? '' : '; without setpriv (util-linux) a shell watches over it'
      }`,
    };
  } catch (error) {
    return {
      ...base,
      state: 'no',
      detail: configured === undefined ? 'not on PATH' : (error as Error).message,
      help: 'a bridge to formats that are not read here (VHD, VHDX, QED, Parallels, DMG, LUKS…): apt install qemu-utils',
    };
  }
}

function nodeFact(): Fact {
  return { id: 'node', title: 'Node.js', state: 'yes', detail: process.version };
}

function addonFacts(): Fact[] {
  const { addon, reason, crc32c, ioThreads } = nativeFacts();
  const queue = { id: 'io-queue', title: 'file I/O' };
  const digest = { id: 'crc32c', title: 'CRC32C for digests' };
  const hardware = crc32c === 'sse4.2' || crc32c === 'armv8-crc';
  if (addon === undefined) {
    return [
      {
        id: 'addon',
        title: 'native addon',
        state: 'no',
        detail: `${reason}; plain Node.js is used, slower`,
        help: reason === 'LUNETTE_NATIVE=0' ? 'unset LUNETTE_NATIVE' : REBUILD,
      },
      {
        ...queue,
        state: 'partly',
        detail: `Node’s thread pool, ${ioThreads} threads`,
        help: 'more: UV_THREADPOOL_SIZE=16',
      },
      { ...digest, state: 'partly', detail: `${crc32c}: correct, slow` },
    ];
  }
  return [
    { id: 'addon', title: 'native addon', state: 'yes', detail: addon },
    { ...queue, state: 'yes', detail: `a queue of its own, ${ioThreads} threads` },
    {
      ...digest,
      state: hardware ? 'yes' : 'partly',
      detail: hardware ? `instructions of this CPU (${crc32c})` : crc32c,
    },
  ];
}

function directoryFactsOf(directory: string): Fact[] {
  let facts: DirectoryFacts | undefined;
  try {
    facts = directoryFacts(directory);
  } catch (error) {
    const why = errnoOf(error) ?? String(error);
    return [
      {
        id: 'file-system',
        title: 'file system',
        state: 'partly',
        detail: `no file can be made here (${why}), so nothing was tried`,
      },
      procLocksFact(),
    ];
  }
  if (facts === undefined) {
    const detail = 'trying it needs the native addon';
    return [
      { id: 'file-system', title: 'file system', state: 'partly', detail, help: REBUILD },
      {
        id: 'ofd-locks',
        title: 'image locks',
        state: 'partly',
        detail: 'taken by a short-lived process',
        help: REBUILD,
      },
      procLocksFact(),
    ];
  }
  const can = (id: string, title: string, has: boolean, yes: string, no: string): Fact => ({
    id,
    title,
    state: has ? 'yes' : 'partly',
    detail: has ? yes : no,
  });
  const reads = {
    cached: 'cached data is read at once (RWF_NOWAIT)',
    memory: 'the file system is memory: data is read at once',
    pool: 'every read goes to a thread',
  } as const;
  return [
    { id: 'file-system', title: 'file system', state: 'yes', detail: facts.fileSystem },
    {
      id: 'nowait-reads',
      title: 'quick reads',
      state: facts.reads === 'pool' ? 'partly' : 'yes',
      detail: reads[facts.reads],
    },
    can(
      'nowait-writes',
      'quick writes',
      facts.noWaitWrites,
      'RWF_NOWAIT',
      'no RWF_NOWAIT: small ones are timed, others go to a thread',
    ),
    can('seek-data', 'holes', facts.seekData, 'found with SEEK_DATA', 'cannot be told from data'),
    can('punch-hole', 'discard', facts.punchesHoles, 'gives space back', 'does not give space back'),
    can('zero-range', 'zeroing', facts.zeroesRanges, 'without writing', 'zeros are written'),
    facts.ofdLocks
      ? { id: 'ofd-locks', title: 'image locks', state: 'yes', detail: 'by open file description, as QEMU takes them' }
      : {
          id: 'ofd-locks',
          title: 'image locks',
          state: 'no',
          detail: 'not on this file system: QEMU would not see that we have an image open',
        },
    procLocksFact(),
  ];
}

async function zstdFact(): Promise<Fact> {
  const base = { id: 'zstd-napi', title: 'zstd-napi' };
  try {
    await loadZstd();
    return { ...base, state: 'yes', detail: 'images with zstd clusters can be read' };
  } catch (error) {
    const why = error instanceof LunetteError ? error.message : String(error);
    return { ...base, state: 'no', detail: why, help: 'npm rebuild zstd-napi (needs make, python3, g++)' };
  }
}

async function lz4Fact(): Promise<Fact> {
  const base = { id: 'lz4-napi', title: 'lz4-napi' };
  if ((await loadLz4()) !== undefined)
    return { ...base, state: 'yes', detail: 'cold blocks are kept compressed in the cache' };
  return { ...base, state: 'partly', detail: 'not there: the cache holds fewer blocks', help: 'npm install lz4-napi' };
}

function dbusPackageFact(): Fact {
  const base = { id: 'dbus-next', title: 'dbus-next' };
  try {
    import.meta.resolve('dbus-next');
    return { ...base, state: 'yes', detail: 'installed' };
  } catch {
    return {
      ...base,
      state: 'no',
      detail: 'not installed',
      help: 'targetcli talks to us through it: npm install dbus-next',
    };
  }
}

const MARKS = { yes: 'ok', partly: '~', no: '-' } as const;

/** The findings for people: a mark, a name and what was found per line, and under it what to do. */
export function renderFindings({ lunette, groups }: Findings): string {
  const lines = [`lunette on Node.js ${lunette.node}, ${lunette.platform}`];
  for (const { title, facts } of groups) {
    lines.push('', title);
    const width = Math.max(...facts.map((fact) => fact.title.length));
    for (const fact of facts) {
      lines.push(`  ${MARKS[fact.state].padEnd(2)}  ${fact.title.padEnd(width)}  ${fact.detail}`);
      if (fact.help !== undefined) lines.push(`      ${' '.repeat(width)}  > ${fact.help}`);
    }
  }
  lines.push('', 'ok: there   ~: works, with less   -: missing');
  return `${lines.join('\n')}\n`;
}
