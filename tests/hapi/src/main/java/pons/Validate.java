package pons;

import ca.uhn.fhir.context.FhirContext;
import ca.uhn.fhir.context.support.DefaultProfileValidationSupport;
import ca.uhn.fhir.context.support.IValidationSupport;
import ca.uhn.fhir.validation.FhirValidator;
import ca.uhn.fhir.validation.ResultSeverityEnum;
import ca.uhn.fhir.validation.SingleValidationMessage;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.hl7.fhir.common.hapi.validation.support.CommonCodeSystemsTerminologyService;
import org.hl7.fhir.common.hapi.validation.support.InMemoryTerminologyServerValidationSupport;
import org.hl7.fhir.common.hapi.validation.support.UnknownCodeSystemWarningValidationSupport;
import org.hl7.fhir.common.hapi.validation.support.ValidationSupportChain;
import org.hl7.fhir.common.hapi.validation.validator.FhirInstanceValidator;

/**
 * Hands the Bundles of files of NDJSON to HAPI's validator, with the definitions of R4 that it brings and no terminology server. Ends with
 * 1 if it finds an error. What it finds is told by where in the Bundle and by rule, with HAPI's own text only where the Bundles are
 * invented: a text may quote a value.
 */
public final class Validate {
    private Validate() {}

    public static void main(String[] arguments) throws Exception {
        boolean texts = List.of(arguments).contains("--texts");
        List<Path> files =
                List.of(arguments).stream().filter(one -> !one.startsWith("--")).map(Path::of).toList();
        if (files.isEmpty()) {
            System.err.println("validate [--texts] FILE.ndjson...");
            System.exit(64);
        }
        FhirValidator validator = validator(FhirContext.forR4());
        int bundles = 0;
        int refused = 0;
        Map<String, Integer> findings = new TreeMap<>();
        for (Path file : files) {
            int line = 0;
            for (String bundle : Files.readAllLines(file)) {
                line++;
                if (bundle.isBlank()) {
                    continue;
                }
                bundles++;
                boolean bad = false;
                for (SingleValidationMessage one : validator.validateWithResult(bundle).getMessages()) {
                    if (one.getSeverity().ordinal() < ResultSeverityEnum.ERROR.ordinal()) {
                        continue;
                    }
                    bad = true;
                    String rule = one.getMessageId() == null ? "no rule named" : one.getMessageId();
                    String text = texts ? ": " + one.getMessage() : "";
                    System.out.println(file + ":" + line + ": " + one.getLocationString() + ": " + rule + text);
                    findings.merge(rule, 1, Integer::sum);
                }
                refused += bad ? 1 : 0;
            }
        }
        findings.forEach((rule, times) -> System.out.println(times + " times " + rule));
        System.out.println("HAPI's validator refuses " + refused + " of " + bundles + " Bundles");
        System.exit(refused > 0 || bundles == 0 ? 1 : 0);
    }

    private static FhirValidator validator(FhirContext context) {
        IValidationSupport definitions = new DefaultProfileValidationSupport(context);
        IValidationSupport chain = new ValidationSupportChain(
                definitions,
                new LaterVersions(context, definitions),
                new InMemoryTerminologyServerValidationSupport(context),
                new CommonCodeSystemsTerminologyService(context),
                unknown(context));
        return context.newValidator().registerValidatorModule(new FhirInstanceValidator(chain));
    }

    /** A code system that HAPI does not bring is no error of a Bundle. */
    private static IValidationSupport unknown(FhirContext context) {
        UnknownCodeSystemWarningValidationSupport unknown = new UnknownCodeSystemWarningValidationSupport(context);
        unknown.setNonExistentCodeSystemSeverity(IValidationSupport.IssueSeverity.WARNING);
        return unknown;
    }
}
