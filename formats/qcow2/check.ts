import { divideUp, hex } from '../core/units.ts';
import { type CheckOptions, type CheckResult, emptyCheckResult, report } from '../image/check.ts';
import type { Storage } from '../storage/storage.ts';
import { DeepCheck } from './check-deep.ts';
import { CheckPages } from './check-pages.ts';
import { repairQcow2 } from './check-repair.ts';
import { readSubject } from './check-subject.ts';
import { CheckWalk, forEachPass } from './check-walk.ts';
import { INCOMPATIBLE } from './features.ts';
import { HEADER_V3, type Qcow2Header } from './header.ts';
import { HeaderSector } from './header-sector.ts';

export interface CheckQcow2Options extends CheckOptions {
  /** Also decompress every compressed cluster, and look for data that lies on metadata. */
  readonly deep?: boolean | undefined;
  /** Bytes of counters in one pass over the image. Default 48 MiB. */
  readonly counterBytes?: number | undefined;
}

/**
 * Checks the metadata of a qcow2 image, counting what `qemu-img check` counts, and mends it.
 *
 * Memory: about 64 MiB of counters, and the L1 tables. Files with more clusters than fit are walked several times.
 *
 * Repair: refcounts that are too low are raised before anything else, COPIED flags go before refcounts sink, those that are missing come last:
 * an interruption leaves what a further repair mends. Refcount structures that are damaged themselves are made anew behind the end of
 * the file, and linked by one write. What cannot be followed is left as it is, and then nothing is given free.
 *
 * @param storage nobody else has it open; writable when something is to be repaired
 * @throws {ImageError} when the header is none, or the file is too spread out
 */
export async function checkQcow2(storage: Storage, options: CheckQcow2Options = {}): Promise<CheckResult> {
  const repair = options.repair ?? 'none';
  const deep = options.deep ?? false;
  const before = await examine(storage, deep, options.counterBytes);
  if (repair === 'none') return before.result;
  const found = before.result;
  if (found.checkErrors > 0 || before.incomplete) {
    if (found.corruptions + found.leaks > 0)
      report(found, 'nothing was repaired: what refers to clusters could not be read completely');
    return found;
  }
  if (repair === 'leaks' && before.rebuild) {
    report(found, 'nothing was repaired: the refcount structures have to be made anew, which a repair of all does');
    return found;
  }
  if (found.corruptions + found.leaks > 0)
    await repairQcow2(storage, { ...before, repair, counterBytes: options.counterBytes });
  const after = found.corruptions + found.leaks > 0 ? await examine(storage, deep, options.counterBytes) : before;
  const { result } = after;
  if (repair === 'all' && result.corruptions + result.checkErrors === 0) await markConsistent(storage, after.header);
  if (result === found) return result;
  result.corruptionsFixed = Math.max(0, found.corruptions - result.corruptions);
  result.leaksFixed = Math.max(0, found.leaks - result.leaks);
  const left = result.messages.splice(0);
  for (const message of found.messages) report(result, message);
  for (const message of left) report(result, `left: ${message}`);
  return result;
}

interface Examined {
  readonly result: CheckResult;
  readonly header: Qcow2Header;
  readonly incomplete: boolean;
  readonly rebuild: boolean;
  /** Tables that lie on something else. */
  readonly overlapped: ReadonlySet<number>;
  readonly l1Overlapped: boolean;
}

async function examine(storage: Storage, deep: boolean, counterBytes: number | undefined): Promise<Examined> {
  const result = emptyCheckResult();
  const subject = await readSubject(storage, result);
  const { header } = subject;
  result.totalClusters = divideUp(header.size, header.geometry.clusterSize);
  const pages = new CheckPages(counterBytes);
  const walk = new CheckWalk(subject, pages, result, deep);
  const visitor = deep ? new DeepCheck(walk, result) : undefined;
  await forEachPass(walk, true, () => compare(walk, result), visitor);
  await visitor?.finish();
  const { rebuild, overlapped, l1Overlapped } = walk;
  return { result, header, incomplete: subject.incomplete, rebuild, overlapped, l1Overlapped };
}

/** Compares references with refcounts. */
function compare(walk: CheckWalk, result: CheckResult): void {
  const { header, refcountTable } = walk.subject;
  const { clusterSize, refcountMax, refcountsPerBlock } = header.geometry;
  const { fileClusters } = walk;
  let last = -1;
  for (const page of walk.pages.all()) {
    for (let i = 0; i < page.length; i++) {
      const references = page.references(i);
      const refcount = page.refcount(i);
      if (references === refcount) {
        if (references !== 0) last = page.first + i;
        continue;
      }
      const cluster = page.first + i;
      if (cluster >= fileClusters && references === 0) continue;
      last = cluster;
      if (walk.isBroken(cluster)) continue;
      const most = Math.min(references, refcountMax);
      if (references > most) {
        result.corruptions += references - most;
        report(result, `cluster ${cluster} has ${references} references, more than its refcount can say`);
      }
      if (refcount < most) {
        result.corruptions++;
        report(
          result,
          `cluster ${cluster} at ${hex(cluster * clusterSize)}: refcount ${refcount}, references ${references}`,
        );
        if (refcountTable.target(Math.floor(cluster / refcountsPerBlock)) === 0) walk.rebuild = true;
      } else if (refcount > most) {
        result.leaks++;
        report(
          result,
          `cluster ${cluster} at ${hex(cluster * clusterSize)} leaks: refcount ${refcount}, references ${references}`,
        );
      }
    }
  }
  result.imageEndOffset = Math.max(result.imageEndOffset, (last + 1) * clusterSize);
}

/** The marks of a writer that did not finish, or met something wrong. */
async function markConsistent(storage: Storage, header: Qcow2Header): Promise<void> {
  const { high, low } = header.incompatibleFeatures;
  const marks = INCOMPATIBLE.DIRTY | INCOMPATIBLE.CORRUPT;
  if (header.geometry.version < 3 || (low & marks) === 0) return;
  await storage.sync();
  const sector = await HeaderSector.load(storage);
  await sector.update((view) => {
    HEADER_V3.write(view, { incompatibleFeatures: { high, low: (low & ~marks) >>> 0 } });
  });
  await storage.sync();
}
