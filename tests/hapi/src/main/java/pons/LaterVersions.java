package pons;

import ca.uhn.fhir.context.FhirContext;
import ca.uhn.fhir.context.support.IValidationSupport;
import org.hl7.fhir.r4.model.StructureDefinition;
import org.hl7.fhir.r4.model.UriType;

/**
 * Elements of FHIR R5 as extensions in R4, by their names (http://hl7.org/fhir/5.0/StructureDefinition/extension-Path.to.element). HAPI brings
 * no definitions of R5, without which it takes every such name for an error. Here each is an Extension with that URL: its form is checked,
 * the type of its value is not.
 */
final class LaterVersions implements IValidationSupport {
    private static final String NAMED = "http://hl7.org/fhir/5.0/StructureDefinition/extension-";
    private static final String EXTENSION = "http://hl7.org/fhir/StructureDefinition/Extension";

    private final FhirContext context;
    private final IValidationSupport base;

    LaterVersions(FhirContext context, IValidationSupport base) {
        this.context = context;
        this.base = base;
    }

    @Override
    public FhirContext getFhirContext() {
        return context;
    }

    @Override
    public StructureDefinition fetchStructureDefinition(String url) {
        if (!url.startsWith(NAMED)) {
            return null;
        }
        StructureDefinition extension = ((StructureDefinition) base.fetchStructureDefinition(EXTENSION)).copy();
        extension.setUrl(url).setBaseDefinition(EXTENSION).setDerivation(StructureDefinition.TypeDerivationRule.CONSTRAINT);
        extension.setContext(null).addContext().setType(StructureDefinition.ExtensionContextType.ELEMENT).setExpression("Element");
        extension.getSnapshot().getElement().stream()
                .filter(element -> element.getPath().equals("Extension.url"))
                .forEach(element -> element.setFixed(new UriType(url)));
        return extension;
    }
}
